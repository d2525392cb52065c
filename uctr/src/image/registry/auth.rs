//! How a registry wants us to prove who we are: its challenges, and the tokens of its issuer.

use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use ureq::http::{HeaderMap, header};
use url::Url;
use url::form_urlencoded::Serializer;

use super::credentials::Credentials;
use super::http::{Http, Outgoing, RegistryError, read_body};

/// How we call ourselves at an issuer of tokens.
const CLIENT_ID: &str = "uctr";
const MAX_TOKEN: u64 = 1 << 20;

/// What a registry asks for with status 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user's name and password with each request.
    Basic,
    /// A token from an issuer.
    Bearer {
        /// The issuer's URL.
        realm: String,
        /// Whom the token is for.
        service: String,
        /// What we need, in the registry's words.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The one to answer: a token if that is offered.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut best = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
                let param = |wanted: &str| {
                    let mut params = challenge.params.iter();
                    let found = params.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let Some(realm) = param("realm") else { continue };
                    let service = param("service").unwrap_or_default();
                    return Some(Self::Bearer { realm, service, scope: param("scope") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    best = Some(Self::Basic);
                }
            }
        }
        best
    }
}

/// Answers a registry's challenges; shared by all threads that talk with it.
#[derive(Debug)]
pub struct Auth {
    credentials: Option<Credentials>,
    /// `repository:user/name:pull` …
    scopes: Vec<String>,
    /// The header `Authorization` that was right last.
    header: Mutex<Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Token {
    token: String,
    access_token: String,
    refresh_token: String,
}

impl Auth {
    /// With our credentials, and what we want to do.
    #[must_use]
    pub fn new(credentials: Option<Credentials>, scopes: Vec<String>) -> Self {
        Self { credentials, scopes, header: Mutex::new(None) }
    }

    /// What to send with a request now.
    #[must_use]
    pub fn header(&self) -> Option<String> {
        self.header.lock().expect("nobody panics with it").clone()
    }

    /// Gets what is asked for, and keeps it for all requests to come.
    ///
    /// # Errors
    /// When we have no credentials, or the issuer refuses.
    pub fn answer(&self, http: &Http, challenge: &Challenge) -> Result<()> {
        let header = match challenge {
            Challenge::Basic => match &self.credentials {
                Some(Credentials::Basic { user, password }) => {
                    format!("Basic {}", Credentials::basic(user, password))
                }
                _ => bail!("no basic auth credentials"),
            },
            Challenge::Bearer { realm, service, scope } => {
                let mut scopes = self.scopes.clone();
                scopes.extend(scope.iter().filter(|scope| !self.scopes.contains(scope)).cloned());
                let token = self.token(http, realm, service, &scopes, false)?;
                let text = [token.token, token.access_token].into_iter().find(|t| !t.is_empty());
                format!("Bearer {}", text.with_context(|| format!("{realm}: gave no token"))?)
            }
        };
        *self.header.lock().expect("nobody panics with it") = Some(header);
        Ok(())
    }

    /// For `login`: a token that stands for us from now on, if the issuer gives such.
    ///
    /// # Errors
    /// When the issuer refuses.
    pub fn identity(&self, http: &Http, challenge: &Challenge) -> Result<Option<String>> {
        let Challenge::Bearer { realm, service, .. } = challenge else { return Ok(None) };
        let token = self.token(http, realm, service, &[], true)?;
        Ok((!token.refresh_token.is_empty()).then_some(token.refresh_token))
    }

    /// As the registry's token specification has it: GET, or POST if we have an identity token.
    fn token(
        &self,
        http: &Http,
        realm: &str,
        service: &str,
        scopes: &[String],
        offline: bool,
    ) -> Result<Token> {
        let mut url = Url::parse(realm)
            .with_context(|| format!("the registry's issuer of tokens, {realm:?}"))?;
        http.check(&url)?;
        let mut outgoing = match &self.credentials {
            Some(Credentials::Identity(refresh)) => {
                let mut form = Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("service", service)
                    .append_pair("client_id", CLIENT_ID)
                    .append_pair("scope", &scopes.join(" "))
                    .append_pair("refresh_token", refresh);
                let form = form.finish().into_bytes();
                Outgoing::post(url, form, "application/x-www-form-urlencoded")
            }
            _ => {
                let mut query = url.query_pairs_mut();
                if !service.is_empty() {
                    query.append_pair("service", service);
                }
                for scope in scopes {
                    query.append_pair("scope", scope);
                }
                if let Some(Credentials::Basic { user, .. }) = &self.credentials {
                    query.append_pair("account", user);
                }
                if offline {
                    query.append_pair("client_id", CLIENT_ID).append_pair("offline_token", "true");
                }
                drop(query);
                Outgoing::get(url)
            }
        };
        if let Some(Credentials::Basic { user, password }) = &self.credentials {
            outgoing
                .header("authorization", format!("Basic {}", Credentials::basic(user, password)));
        }
        let mut response = http.exchange(&outgoing)?;
        if !response.status().is_success() {
            return Err(RegistryError::of(&outgoing, &mut response).into());
        }
        let text = read_body(&mut response, MAX_TOKEN)?;
        serde_json::from_slice(&text).with_context(|| format!("{realm}: what it says is no token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token?a=b,c".into(),
            service: "reg \"x\"".into(),
            scope: Some("repository:a/b:pull,push".into()),
        };
        let text = r#"bearer Realm="https://auth.example/token?a=b,c",service="reg \"x\"",scope="repository:a/b:pull,push",error="invalid_token""#;
        assert_eq!(of(&["Basic realm=x", text]), Some(bearer.clone()));
        assert_eq!(of(&[text, "Basic realm=x"]), Some(bearer));
        assert_eq!(of(&["Basic realm=\"Registry Realm\""]), Some(Challenge::Basic));
    }

    #[test]
    fn challenges_that_are_none_are_passed_over() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["Negotiate", "", "Bearer", "=,=\"", "Bearer service=a"]), None);
        assert_eq!(of(&["Digest realm=a, nonce=b", "Basic realm=c"]), Some(Challenge::Basic));
    }
}
