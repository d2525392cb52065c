//! The steps as text, as a picture, and for trace viewers.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Step;

const LANES: [(bool, &str); 2] = [(false, "the runtime"), (true, "the container's init")];

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// One line a step: when it began, how long it took (ms).
pub fn text(steps: &[Step]) -> String {
    let mut text = String::new();
    for (init, lane) in LANES {
        let mut own = steps.iter().filter(|step| step.init == init).peekable();
        if own.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "{:>9} {:>9}  {lane} (ms)", "at", "took");
        for step in own {
            let (at, took) = (milliseconds(step.begin), milliseconds(step.end - step.begin));
            let _ = writeln!(text, "{at:9.3} {took:9.3}  {}", step.name);
        }
    }
    text
}

/// For chrome://tracing and Perfetto: the Trace Event Format's complete events, in microseconds.
pub fn trace(steps: &[Step]) -> Value {
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let names = LANES.map(|(init, lane)| {
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": u8::from(init), "args": {"name": lane}})
    });
    let events = steps.iter().map(|step| {
        json!({
            "ph": "X", "pid": 1, "tid": u8::from(step.init), "name": step.name,
            "ts": microseconds(step.begin), "dur": microseconds(step.end - step.begin),
        })
    });
    let events: Vec<Value> = names.into_iter().chain(events).collect();
    json!({"traceEvents": events, "displayTimeUnit": "ns"})
}

/// A bar a step, one below the other, on one time line.
pub fn svg(steps: &[Step]) -> String {
    const WIDTH: f64 = 900.0;
    const LEFT: f64 = 20.0;
    const NAMES: f64 = 380.0;
    const ROW: f64 = 16.0;
    let end = steps.iter().map(|step| step.end).max().unwrap_or(1).max(1);
    let scale = WIDTH / end as f64;
    let height = ROW * (steps.len() as f64 + 4.0);
    let full = LEFT + WIDTH + NAMES;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{full}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let bottom = height - ROW;
    for tick in ticks(milliseconds(end)) {
        let x = LEFT + tick * 1e6 * scale;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{ROW}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{height}\" dy=\"-4\" text-anchor=\"middle\">{tick} ms</text>"
        );
    }
    let mut y = ROW;
    let mut ordered: Vec<&Step> = steps.iter().collect();
    ordered.sort_by_key(|step| step.begin);
    for step in ordered {
        let x = LEFT + step.begin as f64 * scale;
        let width = ((step.end - step.begin) as f64 * scale).max(0.5);
        let color = if step.init { "#d9822b" } else { "#3b6ea5" };
        let took = milliseconds(step.end - step.begin);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"12\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{} {took:.3}</text>",
            x + width + 4.0,
            y + 10.0,
            escape(&step.name),
        );
        y += ROW;
    }
    svg.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"11\"><tspan fill=\"#3b6ea5\">the runtime</tspan> \
         <tspan fill=\"#d9822b\">the container's init</tspan> (ms)</text>\n</svg>\n"
    ));
    svg
}

/// Some ten round numbers up to `end`.
fn ticks(end: f64) -> impl Iterator<Item = f64> {
    let rough = end / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(power);
    // Rounded, lest 0.30000000000000004 be printed.
    (0..=(end / step) as u32).map(move |n| (f64::from(n) * step * 1e6).round() / 1e6)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<Step> {
        let step = |init, name: &str, begin, end| Step { init, name: name.into(), begin, end };
        vec![
            step(false, "start the program", 0, 700_000),
            step(false, "wait <&>", 700_000, 2_000_000),
            step(true, "mount /proc", 800_000, 1_900_000),
        ]
    }

    #[test]
    fn text_has_a_table_for_each_process() {
        let text = text(&example());
        assert!(text.contains("    0.700     1.300  wait <&>\n"), "{text}");
        assert!(text.contains("the container's init (ms)\n    0.800     1.100  mount /proc\n"));
        assert!(!super::text(&example()[..2]).contains("init"));
    }

    #[test]
    fn traces_are_in_microseconds() {
        let trace = trace(&example());
        assert_eq!(trace["traceEvents"].as_array().unwrap().len(), 5);
        assert_eq!(trace["traceEvents"][4]["ts"], 800.0);
        assert_eq!(trace["traceEvents"][4]["dur"], 1100.0);
        assert_eq!(trace["traceEvents"][4]["tid"], 1);
    }

    #[test]
    fn pictures_have_a_bar_a_step_and_names_that_are_escaped() {
        let svg = svg(&example());
        assert_eq!(svg.matches("height=\"12\"").count(), 3);
        assert!(svg.contains("wait &lt;&amp;&gt; 1.300"), "{svg}");
        assert!(svg.contains(">1.8 ms<"), "{svg}");
    }
}
