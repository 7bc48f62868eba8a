//! Logging in with a token, which a cookie then holds.

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Section, page as whole_page};
use crate::access::{Access, COOKIE};

/// How long a browser keeps the cookie, in seconds (30 days).
const COOKIE_S: u32 = 30 * 24 * 3600;

/// What logging in needs.
#[derive(Clone)]
pub struct Login {
    /// The tokens.
    pub access: Access,
    /// Whether the server is reached over TLS, so that the cookie must not leave it otherwise.
    pub is_encrypted: bool,
}

/// Where to go then.
#[derive(Deserialize)]
pub struct Parameters {
    #[serde(default)]
    to: String,
}

/// The form.
#[derive(Deserialize)]
pub struct LoginForm {
    token: String,
    #[serde(default)]
    to: String,
}

/// `/login`.
pub async fn page(Query(parameters): Query<Parameters>) -> Html<String> {
    form(&parameters.to, None)
}

/// `POST /login`.
pub async fn log_in(State(context): State<Login>, Form(login): Form<LoginForm>) -> Response {
    let Login { access, is_encrypted } = context;
    let token = login.token.trim();
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("Bearer {token}")) {
        headers.insert(header::AUTHORIZATION, value);
    }
    match access.caller(&headers) {
        Ok(None) => Redirect::to(path(&login.to)).into_response(),
        // A token is letters, digits, - and _.
        Ok(Some(caller)) => {
            let mut response = with_cookie(token, COOKIE_S, is_encrypted, path(&login.to));
            // For the audit log: the request itself has no token.
            response.extensions_mut().insert(caller);
            response
        }
        Err(_) => {
            let refused = form(&login.to, Some("This token is not valid: it may be mistyped, expired or revoked."));
            (StatusCode::UNAUTHORIZED, refused).into_response()
        }
    }
}

/// `POST /logout`.
pub async fn log_out(State(context): State<Login>) -> Response {
    with_cookie("", 0, context.is_encrypted, "/login")
}

/// Goes on with a cookie that scripts cannot read, and that no other site's page sends.
fn with_cookie(token: &str, age_s: u32, is_encrypted: bool, to: &str) -> Response {
    let secure = if is_encrypted { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}");
    let mut response = Redirect::to(to).into_response();
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// A path of this server, so that nobody is sent elsewhere.
fn path(to: &str) -> &str {
    let is_own = to.starts_with('/') && !to.starts_with("//") && !to.contains(|c: char| c == '\\' || c.is_control());
    if is_own { to } else { "/" }
}

fn form(to: &str, error: Option<&str>) -> Html<String> {
    let body: Markup = html! {
        h1 { "Log in" }
        @if let Some(error) = error { p role="alert" { (error) } }
        form.filters method="post" action="/login" {
            input type="hidden" name="to" value=(path(to));
            label { "Token " input type="password" name="token" required autocomplete="current-password"; }
            button { "Log in" }
        }
        form.filters method="post" action="/logout" { button { "Log out" } }
        p.quiet { "The operator of this server creates tokens: " code { "argus token create" } "." }
    };
    whole_page("Log in", Section::None, None, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_site() {
        assert_eq!(path("/batches?vin=x"), "/batches?vin=x");
        for elsewhere in
            ["", "https://evil.example", "//evil.example", "/\\evil.example", "/a\r\nSet-Cookie: x", "/\t/evil.example"]
        {
            assert_eq!(path(elsewhere), "/", "{elsewhere}");
        }
    }
}
