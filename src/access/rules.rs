//! What each path needs.

use axum::http::Method;

use super::token::Scope;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// One of these scopes; `admin` has all.
    AnyOf(&'static [Scope]),
}

const READ: Needs = Needs::AnyOf(&[Scope::Read]);
const QUERY: Needs = Needs::AnyOf(&[Scope::Query]);
const UPLOAD: Needs = Needs::AnyOf(&[Scope::Upload]);
/// Who uploads also follows what becomes of it.
const FOLLOW: Needs = Needs::AnyOf(&[Scope::Upload, Scope::Read]);
const ADMIN: Needs = Needs::AnyOf(&[Scope::Admin]);

/// What a request needs. What is not named here needs `admin`.
pub fn needs(method: &Method, path: &str) -> Needs {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    match segments.as_slice() {
        ["healthz" | "readyz" | "openapi.json" | "login" | "logout"] => Needs::Nothing,
        ["assets" | "docs", ..] if is_read => Needs::Nothing,
        ["metrics"] if is_read => READ,
        ["v1", "logs"] => UPLOAD,
        ["api", "v1", rest @ ..] => of_api(method, is_read, rest),
        ["sql", ..] if is_read => QUERY,
        ["upload"] if is_read => UPLOAD,
        ["batches", _, "feedback"] => QUERY,
        [""] | ["batches" | "codes" | "firmware" | "vehicles", ..] if is_read => READ,
        _ => ADMIN,
    }
}

fn of_api(method: &Method, is_read: bool, segments: &[&str]) -> Needs {
    match segments {
        ["batches"] if is_read => READ,
        ["batches"] if *method == Method::POST => UPLOAD,
        ["batches", _] if is_read => FOLLOW,
        ["batches", _] if *method == Method::DELETE => UPLOAD,
        ["batches", _, "complete" | "reopen"] => UPLOAD,
        ["batches", _, "report" | "progress" | "events"] if is_read => FOLLOW,
        ["batches", _, "uploads", ..] => UPLOAD,
        ["batches", _, "files"] if is_read => FOLLOW,
        ["batches", _, "files", _] if is_read => READ,
        ["batches", _, "files", ..] => UPLOAD,
        ["batches", _, "diagnosis", "feedback"] => QUERY,
        ["batches", _, "errors" | "diagnosis" | "chart.svg" | "chart.png"] if is_read => READ,
        ["lines"] => UPLOAD,
        ["query"] => QUERY,
        ["events"] | ["catalog" | "codes" | "fleet" | "vehicles", ..] if is_read => READ,
        _ => ADMIN,
    }
}

impl Needs {
    /// Whether these scopes are enough.
    pub fn are_met_by(self, scopes: &[Scope]) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::AnyOf(needed) => scopes.iter().any(|scope| *scope == Scope::Admin || needed.contains(scope)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_needs_admin() {
        for (method, path) in [
            (Method::POST, "/api/v1/batches/x/recount"),
            (Method::POST, "/api/v1/batches/x/diagnosis"),
            (Method::PUT, "/api/v1/catalog/x"),
            (Method::DELETE, "/api/v1/vehicles/x"),
            (Method::GET, "/api/v1/tokens"),
            (Method::GET, "/api/v1/new"),
            (Method::GET, "/new"),
            (Method::POST, "/"),
            (Method::GET, "/api/v1//batches"),
        ] {
            assert_eq!(needs(&method, path), ADMIN, "{method} {path}");
        }
        assert_eq!(needs(&Method::GET, "/"), READ);
        assert!(ADMIN.are_met_by(&[Scope::Read, Scope::Admin]) && !ADMIN.are_met_by(&[Scope::Read]));
        assert!(FOLLOW.are_met_by(&[Scope::Upload]) && !READ.are_met_by(&[Scope::Upload]));
    }
}
