//! Requests that the pages of other sites make in a browser are refused: such a page can reach a server on the user's own
//! machine, but must neither read nor change anything there.
//!
//! - A browser says from where a request comes (`Origin`, `Sec-Fetch-Site`). Links from elsewhere may be followed.
//! - A site may let its own name point to the user's machine (DNS rebinding). So a server that listens on a loopback
//!   address is only known by names of that address and of the local network, and by those that the operator allows.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header};

use crate::http::problem::Problem;

/// Which requests are accepted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OriginPolicy {
    /// Whether the server listens on a loopback address.
    is_loopback: bool,
    /// Further names of the server.
    allowed: Box<[String]>,
}

impl OriginPolicy {
    /// The policy of a server that listens on `address`, and is also known by the `allowed` names.
    pub fn new(address: SocketAddr, allowed: &[String]) -> OriginPolicy {
        OriginPolicy {
            is_loopback: address.ip().is_loopback(),
            allowed: allowed.iter().map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    /// Why a request is refused, if it is.
    pub fn refusal<B>(&self, request: &Request<B>) -> Option<Problem> {
        // Without a host it is no browser.
        let host = host(request.headers(), request.uri())?;
        if !self.knows(host.host()) {
            let detail = format!(
                "this server is not known as {:?}; use its address, or start it with --allowed-host {0}",
                host.host()
            );
            return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown-host", detail));
        }
        let is_foreign = match request.headers().get(header::ORIGIN) {
            Some(origin) => {
                let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
                let authority = origin.and_then(|origin| origin.authority().cloned());
                // A proxy may pass on another host, or the host without its port.
                authority.is_none_or(|authority| authority != host && !self.is_allowed(authority.host()))
            }
            None => {
                let said = |name| request.headers().get(name).map(|value| value.as_bytes());
                let is_link = matches!(*request.method(), Method::GET | Method::HEAD)
                    && said("sec-fetch-mode") == Some(b"navigate")
                    && said("sec-fetch-dest").is_none_or(|dest| dest == b"document");
                // Another port of the same machine is the same site, but another page.
                matches!(said("sec-fetch-site"), Some(b"cross-site" | b"same-site")) && !is_link
            }
        };
        is_foreign.then(|| {
            let detail = "a page of another site made this request; open the pages of this server instead";
            Problem::new(StatusCode::FORBIDDEN, "foreign-origin", detail)
        })
    }

    fn is_allowed(&self, name: &str) -> bool {
        self.allowed.contains(&name.to_ascii_lowercase())
    }

    fn knows(&self, name: &str) -> bool {
        let name = name.trim_start_matches('[').trim_end_matches([']', '.']).to_ascii_lowercase();
        let is_allowed = || self.is_allowed(&name);
        match name.parse::<IpAddr>() {
            Ok(address) => !self.is_loopback || address.is_loopback() || is_allowed(),
            // A name without a dot is a name of the local network, which no other site can have.
            Err(_) if !name.contains('.') || name.ends_with(".localhost") => true,
            // Elsewhere, any name may be the server's, unless the operator says which are.
            Err(_) => is_allowed() || !self.is_loopback && self.allowed.is_empty(),
        }
    }
}

/// The host and port that a request is for.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<Authority> {
    let of_header = || headers.get(header::HOST)?.to_str().ok()?.parse().ok();
    uri.authority().cloned().or_else(of_header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "127.0.0.1:8080";

    fn status(policy: &OriginPolicy, method: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri("/api/v1/batches");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let refused = policy.refusal(&request.body(()).expect("a request"));
        refused.map(|problem| axum::response::IntoResponse::into_response(problem).status().as_u16())
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_links_are_followed() {
        let policy = OriginPolicy::new("127.0.0.1:8080".parse().expect("an address"), &[]);
        let to_link =
            [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for (method, headers, expected) in [
            ("GET", &[][..], None),
            ("POST", &[], None),
            ("POST", &[("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")], None),
            ("POST", &[("origin", "http://evil.example")], Some(403)),
            ("GET", &[("origin", "http://127.0.0.1:9090")], Some(403)),
            ("POST", &[("origin", "null")], Some(403)),
            ("GET", &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], None),
            ("GET", &to_link, None),
            ("POST", &to_link, Some(403)),
            ("GET", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], Some(403)),
            ("GET", &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")], Some(403)),
            (
                "GET",
                &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
                Some(403),
            ),
        ] {
            let headers = [&[("host", HOST)], headers].concat();
            assert_eq!(status(&policy, method, &headers), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn the_pages_of_a_server_behind_a_proxy_are_its_own() {
        let allowed = ["argus.example".to_owned()];
        let policy = OriginPolicy::new("127.0.0.1:8080".parse().expect("an address"), &allowed);
        let from = |origin: &str| status(&policy, "POST", &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("https://argus.example:8443"), None);
        assert_eq!(from("https://argus.example.evil"), Some(403));
    }

    #[test]
    fn a_server_is_known_by_its_names_only() {
        let allowed = ["Argus.example".to_owned()];
        for (listens, allowed, host, is_known) in [
            ("127.0.0.1:80", &[][..], "localhost", true),
            ("127.0.0.1:80", &[], "LOCALHOST:80", true),
            ("127.0.0.1:80", &[], "[::1]:80", true),
            ("127.0.0.1:80", &[], "argus:80", true),
            ("127.0.0.1:80", &[], "argus.localhost", true),
            ("127.0.0.1:80", &[], "evil.example:80", false),
            ("127.0.0.1:80", &[], "192.168.1.7", false),
            ("127.0.0.1:80", &[], "127.0.0.1.evil.example", false),
            ("127.0.0.1:80", &allowed, "argus.example", true),
            ("0.0.0.0:80", &[], "argus.fleet.example", true),
            ("0.0.0.0:80", &allowed, "evil.example", false),
            ("0.0.0.0:80", &allowed, "10.0.0.7", true),
        ] {
            let policy = OriginPolicy::new(listens.parse().expect("an address"), allowed);
            let expected = if is_known { None } else { Some(421) };
            assert_eq!(status(&policy, "GET", &[("host", host)]), expected, "{listens} {host}");
        }
        // HTTP/1.0 needs no host.
        let policy = OriginPolicy::new("127.0.0.1:80".parse().expect("an address"), &[]);
        assert_eq!(status(&policy, "GET", &[]), None);
    }
}
