//! The frame of every page, and the page of an error.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::parts::shown;

/// A page that cannot be shown.
#[derive(Debug)]
pub struct PageError {
    status: StatusCode,
    detail: String,
}

impl PageError {
    /// The API answered with this status.
    pub fn new(status: StatusCode, detail: &str) -> PageError {
        PageError { status, detail: detail.to_owned() }
    }

    /// There is no such page.
    pub fn not_found() -> PageError {
        PageError::new(StatusCode::NOT_FOUND, "there is no such page")
    }

    /// What happened.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the request was wrong, and not the server.
    pub fn is_of_the_request(&self) -> bool {
        self.status.is_client_error()
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = html! {
            h1 { (title) }
            p role="alert" { (shown(&self.detail)) }
            p { a href="/" { "Overview" } }
        };
        (self.status, page(title, Section::None, None, &body)).into_response()
    }
}

/// The parts of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Overview,
    Batches,
    Firmware,
    Codes,
    Vehicles,
    Sql,
    Upload,
    None,
}

const SECTIONS: [(Section, &str, &str); 7] = [
    (Section::Overview, "/", "Overview"),
    (Section::Batches, "/batches", "Batches"),
    (Section::Firmware, "/firmware", "Firmware"),
    (Section::Codes, "/codes", "Codes"),
    (Section::Vehicles, "/vehicles", "Vehicles"),
    (Section::Sql, "/sql", "SQL"),
    (Section::Upload, "/upload", "Upload"),
];

/// What a page follows: the path of the events after which it has changed, how often it is shown again at most, in
/// milliseconds, and whether it shows something old, so that it is shown again without an event.
#[derive(Debug, Clone, Copy)]
pub struct Follows<'p> {
    pub events: &'p str,
    pub every_ms: u32,
    pub is_old: bool,
}

/// A page.
pub fn page(title: &str, section: Section, follows: Option<Follows<'_>>, body: &Markup) -> Html<String> {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (shown(title)) " · Argus" }
                link rel="icon" href="/assets/argus.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/argus.css";
                script src="/assets/argus.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    nav aria-label="Pages" {
                        strong { "Argus" }
                        @for (one, path, name) in SECTIONS {
                            a href=(path) aria-current=[(one == section).then_some("page")] { (name) }
                        }
                        a href="/docs/" { "API" }
                    }
                }
                main id="main" tabindex="-1" data-events=[follows.map(|follows| follows.events)] data-every=[follows.map(|follows| follows.every_ms)] {
                    (body)
                    @if follows.is_some_and(|follows| follows.is_old) { div id="old" data-old="" {} } @else { div id="old" {} }
                }
            }
        }
    };
    Html(document.into_string())
}
