use serde_json::{Value, json};

use super::Template;

fn data() -> Value {
    json!({
        "Name": "/web",
        "State": { "Status": "running", "Pid": 42, "Paused": false },
        "Config": { "Labels": { "a.b": "c", "x": "y" }, "Cmd": ["sh", "-c", "a \"b\""], "User": "" },
        "NetworkSettings": {
            "Networks": { "net2": { "IPAddress": "10.0.0.2" }, "net1": { "IPAddress": "10.0.0.1" } },
            "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }], "90/tcp": null },
        },
        "Size": 1.5,
        "Mounts": [],
        "Nothing": null,
    })
}

#[track_caller]
fn writes(template: &str, expected: &str) {
    let parsed = Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error:#}"));
    let got = parsed.render(&data()).unwrap_or_else(|error| panic!("{template}: {error:#}"));
    assert_eq!(got, expected, "{template}");
}

#[track_caller]
fn fails(template: &str, word: &str) {
    let error = Template::parse(template).and_then(|template| template.render(&data()));
    let text = format!("{:#}", error.expect_err(template));
    assert!(text.contains(word), "{template}: {text}");
}

#[test]
fn fields_and_text() {
    writes("plain", "plain");
    writes("", "");
    writes("{{.State.Status}} {{ .State.Pid }}", "running 42");
    writes("{{.State.Paused}}{{.Size}}", "false1.5");
    writes("{{.Config.Cmd}}", "[sh -c a \"b\"]");
    writes("{{.Config.Labels}}", "map[a.b:c x:y]");
    writes("{{$.Name}}", "/web");
    writes("{{.Nothing}}", "<no value>");
    writes("a } b {c} }}", "a } b {c} }}");
}

#[test]
fn what_is_not_there_is_an_error_but_in_maps() {
    fails("{{.Foo}}", "map has no entry for key \"Foo\"");
    fails("{{.State.Health.Status}}", "\"Health\"");
    fails("{{.Name.Foo}}", "can't evaluate field Foo");
    writes("{{.Config.Labels.none}}", "<no value>");
    writes("{{.NetworkSettings.Networks.bridge.IPAddress}}", "<no value>");
    writes("{{index .Config.Labels \"none\"}}", "");
}

#[test]
fn white_space_is_trimmed_where_asked() {
    writes("a  {{- .Name -}}  b", "a/webb");
    writes("a {{/* no */}} b", "a  b");
    writes("a {{- /* no */ -}} b", "ab");
    writes("{{-1}}", "-1");
}

#[test]
fn pipelines_and_functions() {
    writes("{{.Name | printf \"%s!\" | upper}}", "/WEB!");
    writes("{{json .Config.Cmd}}", r#"["sh","-c","a \"b\""]"#);
    writes("{{join .Config.Cmd \" \"}}", "sh -c a \"b\"");
    writes("{{.Config.Cmd | len}}{{len .Name}}", "34");
    writes("{{index .Config.Labels \"a.b\"}}{{index .Config.Cmd 1}}", "c-c");
    writes("{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}", "8080");
    writes("{{range (split \"a,b\" \",\")}}<{{.}}>{{end}}", "<a><b>");
    writes("{{title \"ab cd\"}}{{truncate \"abcdef\" 3}}{{pad \"x\" 1 2}}|", "Ab Cdabc x  |");
    writes("{{print 1 2 \"a\" \"b\" 3 4}}", "1 2ab3 4");
    writes("{{println \"a\" 1}}", "a 1\n");
    writes("{{slice .Name 1}}{{slice .Config.Cmd 0 1}}", "web[sh]");
    writes("{{html \"<a>\"}}", "&lt;a&gt;");
    writes("{{lower `A\\n`}}", "a\\n");
}

#[test]
fn printf_has_its_verbs() {
    writes("{{printf \"%-6s|%6s|%.2s\" \"ab\" \"cd\" \"efg\"}}", "ab    |    cd|ef");
    writes("{{printf \"%05d %x %X %q\" -42 255 255 .Name}}", "-0042 ff FF \"/web\"");
    writes("{{printf \"%.2f%% %v %t\" 1.005 .State.Pid true}}", "1.00% 42 true");
    writes("{{printf \"%d\" \"a\"}}", "%!d(a)");
    writes("{{printf \"%s %s\" \"a\"}}", "a %!s(MISSING)");
    writes("{{printf \"a\" 1}}", "a%!(EXTRA 1)");
    fails("{{printf \"%999999d\" 1}}", "too wide");
}

#[test]
fn conditions() {
    writes("{{if .State.Paused}}a{{else if eq .State.Pid 42}}b{{else}}c{{end}}", "b");
    writes("{{if .Config.User}}a{{else}}b{{end}}{{if .Mounts}}a{{end}}", "b");
    writes("{{if and .Name .State.Pid}}a{{end}}{{if or .Config.User .Nothing}}b{{end}}", "a");
    writes("{{or .Config.User \"root\"}}", "root");
    writes("{{if and .Nothing .Nothing.More}}a{{end}}", "");
    writes("{{eq .Name \"/a\" \"/web\"}}{{ne 1 2}}{{not .Name}}", "truetruefalse");
    writes("{{lt 1 2}}{{ge 1.5 1.5}}{{gt \"b\" \"a\"}}{{le 3 2}}", "truetruetruefalse");
    writes("{{with .State}}{{.Status}}{{end}}{{with .Nothing}}a{{else}}b{{end}}", "runningb");
}

#[test]
fn ranges_and_variables() {
    writes("{{range .Config.Cmd}}[{{.}}]{{end}}", "[sh][-c][a \"b\"]");
    writes("{{range $i, $c := .Config.Cmd}}{{$i}}={{$c}};{{end}}", "0=sh;1=-c;2=a \"b\";");
    writes("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "10.0.0.1 10.0.0.2 ");
    writes(
        "{{range $p, $conf := .NetworkSettings.Ports}}{{$p}} -> {{range $conf}}{{.HostPort}}{{else}}-{{end}};{{end}}",
        "80/tcp -> 8080;90/tcp -> -;",
    );
    writes("{{range .Mounts}}a{{else}}none{{end}}", "none");
    writes("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2");
    writes("{{$n := .Name}}{{range .Config.Cmd}}{{$n}}{{end}}", "/web/web/web");
    writes("{{with $s := .State}}{{$s.Status}}{{end}}", "running");
    fails("{{if true}}{{$x := 1}}{{end}}{{$x}}", "undefined variable");
    fails("{{range .Name}}{{end}}", "can't iterate");
}

#[test]
fn what_is_no_template_is_refused() {
    for (template, word) in [
        ("{{.Name", "unclosed action"),
        ("{{", "unclosed action"),
        ("{{}}", "missing value"),
        ("{{.Name}", "unexpected"),
        ("{{foo .Name}}", "function \"foo\" not defined"),
        ("{{if .Name}}", "without {{end}}"),
        ("{{if .Name}}a{{else}}b", "without {{end}}"),
        ("{{range .Name}}", "without {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{.Name)}}", "unexpected right paren"),
        ("{{.Name | }}", "missing value"),
        ("{{\"a}}", "unterminated"),
        ("{{/* a }}", "unclosed comment"),
        ("{{.A..B}}", "unexpected <.>"),
        ("{{define \"a\"}}{{end}}", "not supported"),
        ("{{index .Config.Cmd 9}}", "out of range"),
        ("{{index .Config.Cmd}}{{lt 1 \"a\"}}", "incompatible types"),
        ("{{1a}}", "bad number"),
        ("{{slice .Name 3 1}}", "out of range"),
        ("{{$x}}", "undefined variable"),
        ("{{.Name \"a\"}}", "is no function"),
    ] {
        fails(template, word);
    }
    fails(&"{{if .Name}}".repeat(100_000), "nested too deeply");
    fails(&format!("{{{{{}", "(".repeat(100_000)), "unclosed action");
    fails(&format!("{{{{{} }}}}", "(".repeat(100_000)), "nested too deeply");
}

#[test]
fn no_text_makes_it_panic() {
    // Cuts of a template that has all there is, and each of its bytes left out.
    let whole = "a{{- /* é */ -}}{{$x, $y := (index .Config.Labels \"a\\n\").b | printf `%-0.3d` '\\t' -1.5e3}}{{else if}}{{range}}é";
    for at in (0..=whole.len()).filter(|at| whole.is_char_boundary(*at)) {
        let _ = Template::parse(&whole[..at]).and_then(|template| template.render(&data()));
        let _ = Template::parse(&whole[at..]).and_then(|template| template.render(&data()));
        let mut rest = whole[at..].chars();
        rest.next();
        let _ = Template::parse(&format!("{}{}", &whole[..at], rest.as_str()));
    }
}
