//! What the user sees of a pull or push: bars on a terminal, else a line for each step.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const REDRAWS_PER_SECOND: u8 = 10;

/// Where to it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// `pull`, `push`
    Stdout,
    /// `run`: standard output is the container's.
    Stderr,
    /// `--quiet`
    Nowhere,
}

/// What is told of the whole.
#[derive(Debug)]
pub struct Progress {
    output: Output,
    bars: Option<MultiProgress>,
}

/// What is told of one layer.
#[derive(Debug)]
pub struct Line<'a> {
    progress: &'a Progress,
    id: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Bars if that is a terminal.
    #[must_use]
    pub fn new(output: Output) -> Self {
        let target = match output {
            Output::Stdout if io::stdout().is_terminal() => {
                Some(ProgressDrawTarget::stdout_with_hz(REDRAWS_PER_SECOND))
            }
            Output::Stderr if io::stderr().is_terminal() => {
                Some(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND))
            }
            _ => None,
        };
        Self { output, bars: target.map(MultiProgress::with_draw_target) }
    }

    /// A line of its own.
    pub fn say(&self, text: impl Display) {
        // Nobody reads any longer: the work goes on all the same.
        let _ = match self.output {
            Output::Stdout => writeln!(io::stdout(), "{text}"),
            Output::Stderr => writeln!(io::stderr(), "{text}"),
            Output::Nowhere => Ok(()),
        };
    }

    /// Begins to tell of a layer.
    #[must_use]
    pub fn line(&self, id: &str, state: &str) -> Line<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length().with_prefix(id.to_owned()));
            bar.set_style(style("{prefix}: {msg}"));
            bar
        });
        let line = Line { progress: self, id: id.to_owned(), bar };
        line.state(state);
        line
    }
}

impl Line<'_> {
    /// What is done with it now.
    pub fn state(&self, state: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(state.to_owned()),
            None => self.progress.say(format_args!("{}: {state}", self.id)),
        }
    }

    /// From here on bytes are counted.
    pub fn count(&self, state: &str, done: u64, size: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_style(
            style("{prefix}: {msg} [{bar:40}] {bytes}/{total_bytes}").progress_chars("=> "),
        );
        bar.set_length(size);
        bar.set_position(done);
        bar.set_message(state.to_owned());
    }

    /// So many bytes are done now.
    pub fn position(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// So many bytes more are done.
    pub fn advance(&self, more: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(more);
        }
    }

    /// No bytes are counted any longer, but it takes its time.
    pub fn busy(&self, state: &str) {
        if let Some(bar) = &self.bar {
            bar.set_style(style("{prefix}: {msg} {spinner}"));
            bar.set_message(state.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    /// The last that is told of it.
    pub fn end(self, state: &str) {
        match &self.bar {
            Some(bar) => {
                bar.disable_steady_tick();
                bar.set_style(style("{prefix}: {msg}"));
                bar.finish_with_message(state.to_owned());
            }
            None => self.state(state),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants")
}
