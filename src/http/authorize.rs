//! Requests without a token that may do what they ask for are refused.

use axum::extract::{Request as AxumRequest, State};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use crate::access::rules::{Needs, needs};
use crate::access::{Access, Caller, Denied};
use crate::http::problem::Problem;
use crate::metadata::Metadata;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has no valid token.
    NoToken,
    /// Its token may not do this.
    Scope(Needs),
    /// Its token is a vehicle's, which may only write its own batches.
    Vehicle,
}

/// Who makes a request; `None` if nobody needs a token, or the path does not.
pub fn authorize<B>(access: &Access, request: &Request<B>) -> Result<Option<Caller>, Refused> {
    let path = request.uri().path();
    let needed = needs(request.method(), path);
    match access.caller(request.headers()) {
        Ok(None) => Ok(None),
        Err(Denied::NoToken) if needed == Needs::Nothing => Ok(None),
        Err(Denied::NoToken) => Err(Refused::NoToken),
        Ok(Some(caller)) if !needed.are_met_by(&caller.scopes) => Err(Refused::Scope(needed)),
        Ok(Some(caller)) if caller.vin.is_some() && needed != Needs::Nothing && !is_of_batches(path) => {
            Err(Refused::Vehicle)
        }
        Ok(caller) => Ok(caller),
    }
}

fn is_of_batches(path: &str) -> bool {
    path == "/api/v1/batches" || path.starts_with("/api/v1/batches/")
}

impl Refused {
    /// The response: a browser that opens a page may log in.
    pub fn response<B>(self, request: &Request<B>) -> Response {
        let path = request.uri().path();
        let accepts_html = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let is_page = *request.method() == Method::GET
            && !path.starts_with("/api/")
            && accepts_html.is_some_and(|accepted| accepted.contains("text/html"));
        match self {
            Refused::NoToken if is_page => {
                let to = request.uri().path_and_query().map_or("/", |path| path.as_str());
                let query = Serializer::new(String::new()).append_pair("to", to).finish();
                Redirect::to(&format!("/login?{query}")).into_response()
            }
            Refused::NoToken => {
                let problem = Problem::new(StatusCode::UNAUTHORIZED, "no-token", Denied::NoToken.to_string());
                let mut response = problem.into_response();
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                response
            }
            Refused::Scope(needed) => {
                let scopes = match needed {
                    Needs::AnyOf(scopes) => scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or "),
                    Needs::Nothing => String::new(),
                };
                let detail = format!("this needs a token with the scope {scopes}");
                Problem::new(StatusCode::FORBIDDEN, "scope", detail).into_response()
            }
            Refused::Vehicle => {
                let detail = "the token of a vehicle may only write the batches of its vehicle";
                Problem::new(StatusCode::FORBIDDEN, "scope", detail).into_response()
            }
        }
    }
}

/// Lets a vehicle's token see the batches of its vehicle only: others do not exist for it.
pub async fn only_own_batches(State(metadata): State<Metadata>, request: AxumRequest, next: Next) -> Response {
    let vin = request.extensions().get::<Caller>().and_then(|caller| caller.vin.clone());
    if let Some(vin) = vin {
        let id = request.uri().path().strip_prefix("/api/v1/batches/").and_then(|rest| rest.split('/').next());
        if let Some(id) = id {
            let Ok(id) = Uuid::parse_str(id) else { return no_batch(id) };
            match metadata.batch(id).await {
                Ok(Some(batch)) if batch.described.vin == vin => {}
                Ok(_) => return Problem::no_batch(id).into_response(),
                Err(error) => return Problem::from(error).into_response(),
            }
        }
    }
    next.run(request).await
}

/// As for an id that no batch could have.
fn no_batch(id: &str) -> Response {
    match crate::http::problem::batch_id(id) {
        Ok(id) => Problem::no_batch(id).into_response(),
        Err(problem) => problem.into_response(),
    }
}
