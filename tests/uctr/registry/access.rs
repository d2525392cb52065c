//! Who may: users and tokens, docker's config.json, TLS, and registries without it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::rogue::{Fake, Reply, Rogue};
use super::server::{Registry, fill, layout, names, tool};
use crate::support::{Output, Sandbox, output};

const IMAGE: &str = "localhost:5000/user/web:1";

/// docker-registry with the user `me`, whose password is `secret`.
fn with_users(sandbox: &Sandbox) -> Registry {
    let file = sandbox.dir.path().join("htpasswd");
    fs::write(&file, tool("htpasswd", &["-Bbn", "me", "secret"]).stdout).unwrap();
    let auth = format!("auth:\n  htpasswd: {{realm: test, path: {}}}", file.display());
    Registry::start(sandbox, "localhost:5000", &auth)
}

fn fill_as_me(sandbox: &Sandbox) {
    let image = layout(sandbox, "image", &[("/a", b"a")]);
    fill(&image, IMAGE, &["--dest-creds", "me:secret"]);
}

fn login(sandbox: &Sandbox, password: &str, args: &[&str]) -> Output {
    let file = sandbox.dir.path().join("password");
    fs::write(&file, password).unwrap();
    let mut command = sandbox.command(["login", "--password-stdin"]);
    output(command.args(args).stdin(fs::File::open(file).unwrap()))
}

fn config(sandbox: &Sandbox) -> Value {
    let path = sandbox.dir.path().join("docker/config.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn s14_login_and_logout() {
    let sandbox = Sandbox::new();
    let _registry = with_users(&sandbox);
    fill_as_me(&sandbox);
    sandbox.uctr(["pull", IMAGE]).fails(1, &["no basic auth credentials"]);
    let words = ["login attempt to http://localhost:5000/v2/ failed with status: 401 Unauthorized"];
    login(&sandbox, "wrong", &["-u", "me", "localhost:5000"]).fails(1, &words);
    assert!(!sandbox.dir.path().join("docker").exists());
    let out = login(&sandbox, "secret\n", &["-u", "me", "localhost:5000"]).ok();
    assert_eq!(out.stdout, "Login Succeeded\n");
    assert!(out.stderr.contains("stored unencrypted"), "{}", out.stderr);
    let auth = STANDARD.encode("me:secret");
    assert_eq!(config(&sandbox), json!({"auths": {"localhost:5000": {"auth": auth}}}));
    let path = sandbox.dir.path().join("docker/config.json");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    sandbox.uctr(["pull", IMAGE]).ok();
    let out = sandbox.uctr(["logout", "localhost:5000"]).ok().stdout;
    assert_eq!(out, "Removing login credentials for localhost:5000\n");
    let out = sandbox.uctr(["logout", "localhost:5000"]).ok().stdout;
    assert_eq!(out, "Not logged in to localhost:5000\n");
    sandbox.uctr(["pull", IMAGE]).fails(1, &["no basic auth credentials"]);
    sandbox.uctr(["push", IMAGE]).fails(1, &["no basic auth credentials"]);
}

#[test]
fn s14_login_needs_a_name_and_a_password() {
    let sandbox = Sandbox::new();
    let words = ["Must provide --username with --password-stdin"];
    login(&sandbox, "secret", &["localhost:5000"]).fails(1, &words);
    login(&sandbox, "", &["-u", "me", "localhost:5000"]).fails(1, &["empty"]);
    let words = ["Cannot perform an interactive login from a non TTY device"];
    sandbox.uctr(["login", "localhost:5000"]).fails(1, &words);
    login(&sandbox, "p", &["-u", "me", "local host"]).fails(1, &["is no registry"]);
}

#[test]
fn s15_s16_push_and_pull_after_login() {
    let sandbox = Sandbox::new();
    let _registry = with_users(&sandbox);
    fill_as_me(&sandbox);
    let out = sandbox.uctr(["login", "-u", "me", "-p", "secret", "http://localhost:5000/v2/"]).ok();
    assert!(out.stderr.contains("Using --password via the CLI is insecure"), "{}", out.stderr);
    sandbox.uctr(["pull", IMAGE]).ok();
    sandbox.uctr(["tag", IMAGE, "localhost:5000/copy:1"]).ok();
    let out = sandbox.uctr(["push", "localhost:5000/copy:1"]).ok().stdout;
    assert!(out.contains(": Mounted from user/web\n"), "{out}");
    let out = sandbox.uctr(["search", "localhost:5000"]).ok().stdout;
    assert!(out.contains("localhost:5000/copy\n"), "{out}");
}

/// A helper that keeps secrets in files of its folder.
fn helper(sandbox: &Sandbox) -> PathBuf {
    let bin = sandbox.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\n\
        cd \"$(dirname \"$0\")\" || exit 1\n\
        case $1 in\n\
        store) cat >secret;;\n\
        get) cat >asked; [ -e secret ] || { echo credentials not found in native keychain; exit 1; }; cat secret;;\n\
        erase) rm secret;;\n\
        esac\n";
    let path = bin.join("docker-credential-test");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn s14_credential_helpers_keep_the_secret() {
    let sandbox = Sandbox::new();
    let _registry = with_users(&sandbox);
    fill_as_me(&sandbox);
    let bin = helper(&sandbox);
    let docker = sandbox.dir.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let text = r#"{"credHelpers": {"localhost:5000": "test"}}"#;
    fs::write(docker.join("config.json"), text).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let uctr = |args: &[&str]| output(sandbox.command(args).env("PATH", &path));
    uctr(&["pull", IMAGE]).fails(1, &["no basic auth credentials"]);
    let out = uctr(&["login", "-u", "me", "-p", "secret", "localhost:5000"]).ok();
    assert!(!out.stderr.contains("unencrypted"), "{}", out.stderr);
    let stored: Value = serde_json::from_slice(&fs::read(bin.join("secret")).unwrap()).unwrap();
    let expected = json!({"ServerURL": "localhost:5000", "Username": "me", "Secret": "secret"});
    assert_eq!(stored, expected);
    assert_eq!(fs::read_to_string(docker.join("config.json")).unwrap(), text);
    uctr(&["pull", IMAGE]).ok();
    assert_eq!(fs::read_to_string(bin.join("asked")).unwrap(), "localhost:5000");
    uctr(&["logout", "localhost:5000"]).ok();
    assert!(!bin.join("secret").exists());
    // A helper that isn't there is named.
    sandbox.uctr(["pull", IMAGE]).fails(1, &["docker-credential-test"]);
}

/// A CA, and a certificate for localhost and 127.0.0.1 by it.
fn certificates(sandbox: &Sandbox) -> PathBuf {
    let dir = sandbox.dir.path().join("certs");
    fs::create_dir(&dir).unwrap();
    let openssl = |args: &str| {
        let args = args.replace("DIR", dir.to_str().unwrap());
        let args: Vec<&str> = args.split_whitespace().collect();
        tool("openssl", &args);
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout DIR/ca.key -out DIR/ca.crt -subj /CN=test-ca -days 2 \
         -addext basicConstraints=critical,CA:TRUE"
    ));
    openssl(&format!("req {key} -keyout DIR/key -out DIR/request -subj /CN=localhost"));
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\n";
    fs::write(dir.join("names"), names).unwrap();
    openssl(
        "x509 -req -in DIR/request -CA DIR/ca.crt -CAkey DIR/ca.key -CAcreateserial \
         -out DIR/crt -days 2 -extfile DIR/names",
    );
    dir
}

fn with_tls(sandbox: &Sandbox, certs: &Path) -> Registry {
    let tls = format!("  tls: {{certificate: {0}/crt, key: {0}/key}}\n---\n", certs.display());
    Registry::start(sandbox, "localhost:5000", &tls)
}

#[test]
fn a_registry_with_tls_needs_a_ca_that_is_known() {
    let sandbox = Sandbox::new();
    let certs = certificates(&sandbox);
    let _registry = with_tls(&sandbox, &certs);
    fill(&layout(&sandbox, "image", &[("/a", b"a")]), IMAGE, &[]);
    // Not even on this machine a certificate that is there may be wrong.
    let words = ["x509: certificate signed by unknown authority", "certs.d/localhost:5000/ca.crt"];
    let settings = sandbox.dir.path().join("settings");
    let uctr = |args: &[&str]| output(sandbox.command(args).env("UCTR_CONFIG_DIR", &settings));
    uctr(&["pull", IMAGE]).fails(1, &words);
    assert!(names(&sandbox).is_empty());
    uctr(&["pull", "--insecure-registry", "localhost:5000", IMAGE]).ok();
    let ca = certs.join("ca.crt");
    output(sandbox.command(["pull", IMAGE]).env("SSL_CERT_FILE", &ca)).ok();
    let folder = settings.join("certs.d/localhost:5000");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&ca, folder.join("ca.crt")).unwrap();
    uctr(&["pull", IMAGE]).ok();
    // That folder is for this port alone, and the certificate for these names alone.
    uctr(&["pull", "127.0.0.1:5000/user/web:1"]).fails(1, &["unknown authority"]);
    let folder = settings.join("certs.d/127.0.0.2:5000");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&ca, folder.join("ca.crt")).unwrap();
    fs::write(folder.join("broken.crt"), "no certificate").unwrap();
    uctr(&["pull", "127.0.0.2:5000/user/web:1"]).fails(1, &["broken.crt"]);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let sandbox = Sandbox::new();
    let certs = certificates(&sandbox);
    let tls = format!("  tls: {{certificate: {0}/crt, key: {0}/key}}\n---\n", certs.display());
    let _registry = Registry::start(&sandbox, "127.0.0.2:5000", &tls);
    let mut command = sandbox.command(["pull", "127.0.0.2:5000/user/web:1"]);
    command.env("SSL_CERT_FILE", certs.join("ca.crt"));
    output(&mut command).fails(1, &["x509", "not valid for"]);
}

#[test]
fn a_registry_may_ask_for_our_certificate() {
    let sandbox = Sandbox::new();
    let certs = certificates(&sandbox);
    let tls = format!(
        "  tls: {{certificate: {0}/crt, key: {0}/key, clientcas: [{0}/ca.crt]}}\n---\n",
        certs.display()
    );
    let _registry = Registry::start(&sandbox, "localhost:5000", &tls);
    let settings = sandbox.dir.path().join("settings");
    let folder = settings.join("certs.d/localhost:5000");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(certs.join("ca.crt"), folder.join("ca.crt")).unwrap();
    let search = || {
        let mut command = sandbox.command(["search", "localhost:5000"]);
        output(command.env("UCTR_CONFIG_DIR", &settings))
    };
    search().fails(1, &["localhost:5000"]);
    fs::copy(certs.join("crt"), folder.join("client.cert")).unwrap();
    search().fails(1, &["client.key"]);
    fs::copy(certs.join("key"), folder.join("client.key")).unwrap();
    search().ok();
}

#[test]
fn s17_plain_http_is_for_this_machine_and_those_that_are_named() {
    let sandbox = Sandbox::new();
    tool("ip", &["address", "add", "192.0.2.7/32", "dev", "lo"]);
    let _registry = Registry::start(&sandbox, "192.0.2.7:5000", "");
    let name = "192.0.2.7:5000/user/web:1";
    fill(&layout(&sandbox, "image", &[("/a", b"a")]), name, &[]);
    let words = ["http: server gave HTTP response to HTTPS client", "insecure-registries"];
    sandbox.uctr(["pull", name]).fails(1, &words);
    let other = ["pull", "--insecure-registry", "192.0.2.7:5001", name];
    sandbox.uctr(other).fails(1, &words);
    sandbox.uctr(["pull", "--insecure-registry", "192.0.2.7:5000", name]).ok();
    let settings = sandbox.dir.path().join("settings");
    fs::create_dir(&settings).unwrap();
    let file = settings.join("daemon.json");
    let uctr = |args: &[&str]| output(sandbox.command(args).env("UCTR_CONFIG_DIR", &settings));
    fs::write(&file, r#"{"debug": true, "insecure-registries": ["192.0.2.0/24"]}"#).unwrap();
    uctr(&["pull", name]).ok();
    fs::write(&file, r#"{"insecure-registries": ["198.51.100.0/24"]}"#).unwrap();
    uctr(&["pull", name]).fails(1, &words);
    fs::write(&file, "{").unwrap();
    uctr(&["pull", name]).fails(1, &["daemon.json"]);
}

/// Signs tokens as docker-registry wants them, for whoever is `me` with the password `secret`, or
/// comes with the identity token `refresh`.
fn issuer(certs: PathBuf) -> Rogue {
    let signing = Mutex::new(());
    Rogue::new(move |request| {
        let (_, query) = request.path.split_once('?').unwrap_or(("", ""));
        let form = String::from_utf8(request.body.clone()).unwrap();
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        let pairs: Vec<_> = pairs.chain(url::form_urlencoded::parse(form.as_bytes())).collect();
        let of = |key: &str| {
            let all = pairs.iter().filter(|(name, _)| name == key);
            all.map(|(_, value)| value.to_string()).collect::<Vec<_>>()
        };
        let basic = format!("Basic {}", STANDARD.encode("me:secret"));
        let is_me = request.headers.get("authorization") == Some(&basic)
            || of("refresh_token") == ["refresh"];
        if !is_me {
            return Reply::new(401, r#"{"details": "incorrect username or password"}"#);
        }
        let scopes = of("scope");
        let access: Vec<Value> = scopes
            .iter()
            .flat_map(|scope| scope.split(' '))
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let _one = signing.lock().unwrap();
        let token = token(&certs, &json!(access));
        let mut answer = json!({"access_token": token, "expires_in": 60});
        if of("offline_token") == ["true"] {
            answer["refresh_token"] = "refresh".into();
        }
        Reply::new(200, answer.to_string())
    })
}

fn token(certs: &Path, access: &Value) -> String {
    let der = output(
        Command::new("openssl")
            .args(["x509", "-outform", "der", "-in"])
            .arg(certs.join("issuer.crt"))
            .arg("-out")
            .arg(certs.join("issuer.der")),
    )
    .ok();
    drop(der);
    let der = STANDARD.encode(fs::read(certs.join("issuer.der")).unwrap());
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": "issuer", "sub": "me", "aud": "test", "exp": now + 600,
        "nbf": now - 60, "iat": now, "jti": "1", "access": access});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    fs::write(certs.join("signed"), &signed).unwrap();
    let (key, signature) = (certs.join("issuer.key"), certs.join("signature"));
    let mut sign = Command::new("openssl");
    sign.args(["dgst", "-sha256", "-sign"]).arg(key).arg("-out").arg(&signature);
    output(sign.arg(certs.join("signed"))).ok();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fs::read(signature).unwrap()))
}

#[test]
fn s14_s15_tokens_of_an_issuer() {
    let sandbox = Sandbox::new();
    let certs = sandbox.dir.path().join("issuer");
    fs::create_dir(&certs).unwrap();
    let args = format!(
        "req -x509 -newkey rsa:2048 -nodes -keyout {0}/issuer.key -out {0}/issuer.crt \
         -subj /CN=issuer -days 2",
        certs.display()
    );
    tool("openssl", &args.split_whitespace().collect::<Vec<_>>());
    let issuer = issuer(certs.clone());
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: test\n    issuer: issuer\n    \
         rootcertbundle: {}/issuer.crt",
        issuer.address,
        certs.display()
    );
    let _registry = Registry::start(&sandbox, "localhost:5000", &auth);
    fill_as_me(&sandbox);
    let words = ["pull access denied for localhost:5000/user/web", "uctr login localhost:5000"];
    sandbox.uctr(["pull", IMAGE]).fails(1, &words);
    let words = ["incorrect username or password"];
    login(&sandbox, "wrong", &["-u", "me", "localhost:5000"]).fails(1, &words);
    login(&sandbox, "secret", &["-u", "me", "localhost:5000"]).ok();
    let stored = &config(&sandbox)["auths"]["localhost:5000"];
    assert_eq!(stored["identitytoken"], "refresh");
    assert_eq!(stored["auth"], STANDARD.encode("me:"));
    sandbox.uctr(["pull", IMAGE]).ok();
    let asked = issuer.seen("/token");
    let last = asked.last().unwrap();
    let form = String::from_utf8(last.body.clone()).unwrap();
    assert_eq!(last.method, "POST");
    for part in ["grant_type=refresh_token", "service=test", "repository%3Auser%2Fweb%3Apull"] {
        assert!(form.contains(part), "{form}");
    }
    sandbox.uctr(["tag", IMAGE, "localhost:5000/copy:1"]).ok();
    let out = sandbox.uctr(["push", "localhost:5000/copy:1"]).ok().stdout;
    assert!(out.contains(": Mounted from user/web\n"), "{out}");
    let out = sandbox.uctr(["search", "localhost:5000"]).ok().stdout;
    assert!(out.contains("localhost:5000/copy\n"), "{out}");
    sandbox.uctr(["logout", "localhost:5000"]).ok();
    let words = ["push access denied for localhost:5000/copy", "uctr login localhost:5000"];
    sandbox.uctr(["push", "localhost:5000/copy:1"]).fails(1, &words);
}

#[test]
fn a_token_that_expired_is_got_anew() {
    let sandbox = Sandbox::new();
    let image = Fake::new(b"x");
    let issued = Mutex::new(0);
    let issuer = Rogue::new(move |_| {
        let mut issued = issued.lock().unwrap();
        *issued += 1;
        Reply::new(200, format!(r#"{{"token": "t{issued}"}}"#))
    });
    let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, issuer.address);
    let served = image.clone();
    // The first token is good for the manifest alone.
    let rogue = Rogue::new(move |request| {
        let header = request.headers.get("authorization").map(String::as_str);
        let is_right = match request.path.contains("/blobs/") {
            true => header == Some("Bearer t2"),
            false => header.is_some(),
        };
        match is_right {
            true => served.reply(request),
            false => Reply::new(401, "").header("WWW-Authenticate", &challenge),
        }
    });
    sandbox.uctr(["pull", &format!("{}/expired", rogue.address)]).ok();
    assert_eq!(issuer.seen("/token").len(), 2);
}

#[test]
fn an_issuer_of_tokens_may_not_be_talked_to_without_tls() {
    let sandbox = Sandbox::new();
    let docker = sandbox.dir.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let rogue = Rogue::new(|_| {
        let challenge = r#"Bearer realm="http://192.0.2.1/token",service="s""#;
        Reply::new(401, "").header("WWW-Authenticate", challenge)
    });
    let auths = format!(r#"{{"auths": {{"{}": {{"auth": "dTpw"}}}}}}"#, rogue.address);
    fs::write(docker.join("config.json"), auths).unwrap();
    let name = format!("{}/token", rogue.address);
    sandbox.uctr(["pull", &name]).fails(1, &["plain HTTP is only used"]);
}
