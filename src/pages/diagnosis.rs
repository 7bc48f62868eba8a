//! What a language model wrote about a batch, similar cases, and the form for feedback.

use axum::Form;
use axum::extract::{Path, State};
use axum::response::Redirect;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, segment};
use super::layout::PageError;
use super::parts::{grouped, items, number, shown, text};

/// The explanation of the findings, as far as it is written.
pub fn explanation(explanation: &Value) -> Markup {
    let state = text(explanation, "state");
    html! {
        @if !state.is_empty() {
            section.explanation aria-labelledby="explanation-title" {
                h3 id="explanation-title" {
                    @if explanation["source"] == "case" { "A known situation" }
                    @else { "What the model " (shown(text(explanation, "model"))) " says" }
                }
                @match state {
                    "queued" => p.quiet { "It waits for the model." },
                    "writing" => p.quiet { "It is being written." },
                    "failed" => p.quiet { "There is no explanation: " (shown(text(explanation, "reason"))) "." },
                    _ => {}
                }
                @if explanation["outdated"] == true { p.quiet { "The findings have changed since." } }
                @if explanation["summary"].is_object() { p { (statement(&explanation["summary"])) } }
                @if explanation["likely_cause"].is_object() { p { strong { "Likely cause: " } (statement(&explanation["likely_cause"])) } }
                @for (title, field) in [("What the evidence says", "known"), ("What is only a guess", "guessed"), ("Steps to try", "steps")] {
                    @if !items(explanation, field).is_empty() {
                        h4 { (title) }
                        @if field == "steps" { ol { @for one in items(explanation, field) { li { (statement(one)) } } } }
                        @else { ul { @for one in items(explanation, field) { li { (statement(one)) } } } }
                    }
                }
                @if number(explanation, "struck_out") > 0 {
                    p.quiet { (grouped(number(explanation, "struck_out"))) " statements were struck out, because their evidence does not have what they say." }
                }
            }
        }
    }
}

/// A statement and the ids of its evidence.
fn statement(statement: &Value) -> Markup {
    html! {
        (shown(text(statement, "text"))) " "
        span.quiet { "[" @for (index, id) in items(statement, "evidence").iter().enumerate() {
            @if index > 0 { ", " } (shown(id.as_str().unwrap_or_default()))
        } "]" }
    }
}

/// Similar cases, and the form to make this batch one.
pub fn cases(diagnosis: &Value) -> Markup {
    let id = text(diagnosis, "batch_id");
    html! {
        @if !items(diagnosis, "similar_cases").is_empty() {
            h3 { "Similar cases" }
            ul {
                @for case in items(diagnosis, "similar_cases") {
                    li {
                        (text(case, "id")) " " a href={ "/batches/" (segment(text(case, "batch_id"))) } { "batch" } ": "
                        @if case["cause"].is_string() { (shown(text(case, "cause"))) } @else { span.quiet { "no cause is known" } }
                        @if case["note"].is_string() { " (" (shown(text(case, "note"))) ")" }
                        span.quiet { " " (format!("{:.0} %", 100.0 * case["similarity"].as_f64().unwrap_or(0.0))) " of the codes" }
                    }
                }
            }
        }
        @if !items(diagnosis, "findings").is_empty() {
            form.filters method="post" action={ "/batches/" (segment(id)) "/feedback" } {
                @let said = &diagnosis["feedback"];
                label { "This diagnosis is " select name="verdict" {
                    @for (verdict, name) in [("right", "right"), ("corrected", "not right: the cause is"), ("wrong", "wrong")] {
                        option value=(verdict) selected[text(said, "verdict") == verdict] { (name) }
                    }
                } }
                label { "Cause " input type="text" name="cause" maxlength="1000" value=(text(said, "cause")); }
                label { "Note " input type="text" name="note" maxlength="1000" value=(text(said, "note")); }
                button { "Save" }
            }
        }
    }
}

/// What a user says of a diagnosis; empty fields are not given.
#[derive(Deserialize)]
pub struct FeedbackForm {
    verdict: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    note: String,
}

/// `POST /batches/{id}/feedback`.
pub async fn feedback(
    State(api): State<Api>,
    Path(id): Path<String>,
    Form(form): Form<FeedbackForm>,
) -> Result<Redirect, PageError> {
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let body = json!({"verdict": form.verdict, "cause": given(&form.cause), "note": given(&form.note)});
    let path = format!("/batches/{}", segment(&id));
    api.post(&format!("{path}/diagnosis/feedback"), &body).await?;
    Ok(Redirect::to(&format!("{path}#diagnosis")))
}
