//! The web pages: HTML that is rendered on the server and works without script.
//!
//! Pages read the API of the same process ([`api`]), so that they show exactly what it
//! answers; [`recent`] keeps what takes long to compute. Every filter of a page is in its URL. One small script (`assets/argus.js`)
//! shows changes as they happen, and uploads files.
//!
//! - [`layout`]: the frame of every page; [`parts`]: what pages are made of; [`chart`]: pictures
//! - a module for each page: [`overview`], [`batches`], [`batch`] with its [`diagnosis`], [`firmware`], [`codes`], [`vehicles`], [`sql`], [`upload`]; [`login`]

mod api;
mod batch;
mod batches;
mod chart;
mod codes;
mod diagnosis;
mod firmware;
mod layout;
mod login;
mod overview;
mod parts;
mod recent;
mod sql;
mod upload;
mod vehicles;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use self::api::Api;
pub use self::login::Login;

const STYLE: &str = include_str!("assets/argus.css");
const SCRIPT: &str = include_str!("assets/argus.js");
const ICON: &str = include_str!("assets/argus.svg");

/// Scripts and styles come from this server alone, and nothing from a log can run.
const SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

/// The pages over an API.
pub fn router(api: Router, login: Login) -> Router {
    let login_pages = Router::new()
        .route("/login", get(login::page).post(login::log_in))
        .route("/logout", post(login::log_out))
        .with_state(login);
    Router::new()
        .route("/", get(overview::page))
        .route("/batches", get(batches::page))
        .route("/batches/{id}", get(batch::page))
        .route("/batches/{id}/feedback", post(diagnosis::feedback))
        .route("/firmware", get(firmware::page))
        .route("/codes", get(codes::list))
        .route("/codes/{code}", get(codes::page))
        .route("/vehicles", get(vehicles::list))
        .route("/vehicles/{vin}", get(vehicles::page))
        .route("/sql", get(sql::page))
        .route("/sql/download", get(sql::download))
        .route("/upload", get(upload::page))
        .route("/assets/argus.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/assets/argus.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/assets/argus.svg", get(|| async { asset("image/svg+xml", ICON) }))
        .with_state(Api::new(api))
        .merge(login_pages)
        .layer(axum::middleware::map_response(secure))
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    // Revalidated, so that a new version of the server is not shown with an old script.
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, SECURITY_POLICY);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    response
}
