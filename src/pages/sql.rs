//! SQL: an editor, the tables, the rows and a chart of them.

use std::time::Instant;

use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, ROWS_MAX, with_parameters};
use super::layout::{PageError, Section, page as whole_page};
use super::parts::{grouped, items, shown, text};

const EXAMPLE: &str = "SELECT code, sum(count) AS times, count(DISTINCT batch_id) AS batches\nFROM error_counts\nGROUP BY code\nORDER BY times DESC\nLIMIT 20";

/// Bars of the chart.
const BARS_MAX: usize = 30;

/// Formats of a download: name, extension, media type.
const FORMATS: [(&str, &str, &str); 3] = [
    ("CSV", "csv", "text/csv"),
    ("Parquet", "parquet", "application/vnd.apache.parquet"),
    ("Arrow", "arrow", "application/vnd.apache.arrow.stream"),
];

#[derive(Deserialize)]
pub struct Parameters {
    sql: Option<String>,
}

/// `/sql`.
pub async fn page(State(api): State<Api>, Query(parameters): Query<Parameters>) -> Result<Html<String>, PageError> {
    let columns = api
        .query(
            "SELECT table_name, column_name, data_type FROM information_schema.columns \
             WHERE table_schema = 'public' ORDER BY table_name, ordinal_position",
        )
        .await?;
    let sql = parameters.sql.as_deref().filter(|sql| !sql.trim().is_empty());
    let began = Instant::now();
    let answer = match sql {
        Some(sql) => Some(api.query(sql).await),
        None => None,
    };
    let took = began.elapsed();
    let rows = items(&columns, "rows");
    let body = html! {
        h1 { "SQL" }
        div.editor {
            form action="/sql" data-query="" {
                label for="sql" { "Query" }
                textarea id="sql" name="sql" rows="10" spellcheck="false" autocapitalize="off" { (sql.unwrap_or(EXAMPLE)) }
                button { "Run" } " " button type="button" data-cancel="" hidden { "Cancel" } " " output data-running="" {}
            }
            aside aria-label="Tables" {
                @for of_table in rows.chunk_by(|one, next| one[0] == next[0]) {
                    details {
                        summary { (shown(of_table[0][0].as_str().unwrap_or_default())) }
                        ul { @for column in of_table { li { code { (shown(column[1].as_str().unwrap_or_default())) } " " span.quiet { (shown(column[2].as_str().unwrap_or_default())) } } } }
                    }
                }
            }
        }
        div id="result" aria-live="polite" {
            @match &answer {
                Some(Ok(answer)) => {
                    p { (grouped(items(answer, "rows").len() as u64)) " rows in " (format!("{:.1} ms", took.as_secs_f64() * 1000.0)) " at epoch " (answer["epoch"].as_u64().unwrap_or(0))
                        @if answer["truncated"] == true { ", the first " (ROWS_MAX) }
                        ". Download "
                        @for (name, format, _) in FORMATS {
                            a href=(with_parameters("/sql/download", &[("format", Some(format)), ("sql", sql)])) { (name) } " "
                        }
                    }
                    (bars(answer))
                    (table(answer))
                }
                Some(Err(error)) => p role="alert" { (shown(error.detail())) },
                None => {}
            }
        }
    };
    Ok(whole_page("SQL", Section::Sql, None, &body))
}

fn table(answer: &Value) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Rows" {
            table {
                thead { tr { @for column in items(answer, "columns") { th scope="col" title=(text(column, "type")) { (shown(text(column, "name"))) } } } }
                tbody {
                    @for row in items(answer, "rows") {
                        tr { @for value in row.as_array().into_iter().flatten() {
                            @match value {
                                Value::Null => td.quiet { "null" },
                                Value::String(text) => td { (shown(text)) },
                                Value::Number(number) => td.number { (number) },
                                other => td { (shown(&other.to_string())) },
                            }
                        } }
                    }
                }
            }
        }
    }
}

/// Bars of the first column of numbers, named by the first other column.
fn bars(answer: &Value) -> Markup {
    let rows = items(answer, "rows");
    let columns = items(answer, "columns").len();
    let is_number =
        |column: &usize| !rows.is_empty() && rows.iter().all(|row| row[*column].is_number() || row[*column].is_null());
    let (Some(measure), Some(name)) = ((0..columns).find(is_number), (0..columns).find(|column| !is_number(column)))
    else {
        return html! {};
    };
    let most = rows.iter().take(BARS_MAX).filter_map(|row| row[measure].as_f64()).fold(0.0, f64::max);
    if most <= 0.0 {
        return html! {};
    }
    html! {
        figure {
            figcaption { (shown(text(&answer["columns"][measure], "name"))) " by " (shown(text(&answer["columns"][name], "name"))) }
            div.bars {
                @for row in rows.iter().take(BARS_MAX) {
                    @let value = row[measure].as_f64().unwrap_or(0.0).max(0.0);
                    span { (shown(row[name].as_str().unwrap_or("null"))) }
                    svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" { rect.group-0 x="0" y="1" width=(100.0 * value / most) height="8" {} }
                    span.number { (row[measure]) }
                }
            }
        }
    }
}

#[derive(Deserialize)]
pub struct DownloadParameters {
    sql: String,
    format: String,
}

/// `/sql/download`.
pub async fn download(
    State(api): State<Api>,
    Query(parameters): Query<DownloadParameters>,
) -> Result<Response, PageError> {
    let format = FORMATS.into_iter().find(|(_, format, _)| *format == parameters.format);
    let (_, extension, media_type) = format
        .ok_or_else(|| PageError::new(StatusCode::UNPROCESSABLE_ENTITY, "format must be csv, parquet or arrow"))?;
    let mut response = api.query_as(&parameters.sql, media_type).await?;
    if response.status() == StatusCode::OK {
        let name = HeaderValue::try_from(format!("attachment; filename=\"rows.{extension}\""));
        response.headers_mut().extend(name.into_iter().map(|name| (header::CONTENT_DISPOSITION, name)));
    }
    Ok(response.into_response())
}
