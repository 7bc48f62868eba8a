//! Lines from log shippers, such as Vector and Fluent Bit: NDJSON, or arrays of JSON objects.

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Service;
use crate::domain::batch::check_name;
use crate::http::error_responses::{
    Conflict, DiskFull, GatewayTimeout, Invalid, TimedOut, TooLong, Unavailable, UnknownEncoding, UploadInterrupted,
};
use crate::http::extract::Parameters;
use crate::http::problem::Problem;
use crate::http::routes::files::content_encoding;
use crate::http::routes::lines::read_part;
use crate::http::shipped::{Line, ShippedLines};
use crate::ingest::Ingest;
use crate::ingest::slots::Slots;
use crate::pipeline::streams::Sender;

/// The stream of these lines: the label `stream` of their batches.
const STREAM: &str = "http";

/// The file of records that name none.
const FILE_DEFAULT: &str = "lines.log";

/// Fields that may have the line, in this order.
const MESSAGES: [&str; 4] = ["message", "log", "line", "MESSAGE"];

/// A record with one of these fields has more to say than its message: it is counted as it is, a line of JSON.
const LEVELS: [&str; 5] = ["level", "severity", "log.level", "lvl", "PRIORITY"];

/// Bodies received at once; more wait.
const BODIES_MAX: usize = 32;

/// Rejected records that a response lists.
const REJECTED_MAX: usize = 100;

#[derive(Clone)]
struct ShippersContext {
    ingest: Ingest,
    slots: Slots,
    shipped: ShippedLines,
}

/// `/lines`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = ShippersContext {
        ingest: service.ingest.clone(),
        slots: Slots::new("shippers", BODIES_MAX),
        shipped: ShippedLines::new(service, STREAM),
    };
    OpenApiRouter::new().routes(routes!(append)).layer(DefaultBodyLimit::disable()).with_state(context)
}

/// What records that do not say it themselves belong to.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Defaults {
    /// The operator's id of the vehicle.
    vehicle_id: Option<String>,
    /// Its vehicle identification number.
    vin: Option<String>,
    /// The hardware platform.
    platform: Option<String>,
    /// The firmware.
    firmware: Option<String>,
    /// The file that the lines are appended to; default `lines.log`.
    file: Option<String>,
}

/// What became of records.
#[derive(Serialize, ToSchema)]
struct LinesBody {
    /// Records that are durable and counted.
    accepted: usize,
    /// The number of records that were not counted.
    rejections: u64,
    /// The first 100 of them.
    rejected: Vec<RejectedRecord>,
    /// The epoch that has the lines.
    epoch: u64,
}

/// A record that was not counted.
#[derive(Serialize, ToSchema)]
struct RejectedRecord {
    /// Its number in the body, from 1.
    record: usize,
    /// Why.
    detail: String,
}

/// Appends lines of vehicles.
///
/// The body is NDJSON or an array of JSON objects. A record has `vehicle_id` and `vin`, optionally `platform`, `firmware` and
/// `file`, and its line in `message`, `log` or `line`. A record with a level of its own (`level`, `severity`, …) is counted
/// whole, as a line of JSON. Lines join the open batch of their vehicle and firmware with the label `stream=http`, which is
/// created when there is none; complete it to begin another one.
///
/// All lines of a body are counted in one epoch, or none is. A body that is sent again after a lost response counts twice.
#[utoipa::path(
    post,
    path = "/api/v1/lines",
    tag = "files",
    params(
        Defaults,
        ("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd"),
    ),
    request_body(content = String, content_type = "application/x-ndjson"),
    responses(
        (status = 200, description = "durable and counted, except the rejected ones", body = LinesBody),
        UploadInterrupted, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, GatewayTimeout, DiskFull,
    ),
)]
async fn append(
    State(context): State<ShippersContext>,
    Parameters(defaults): Parameters<Defaults>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LinesBody>, Problem> {
    let encoding = content_encoding(&headers)?;
    context.ingest.check_room()?;
    let (bytes, _slot) = read_part(&context.slots, body, encoding).await?;
    let (mut lines, mut rejected, mut rejections) = (Vec::new(), Vec::new(), 0);
    for (index, record) in records(&bytes).enumerate() {
        match record.and_then(|(record, text)| line(record, text, &defaults)) {
            Ok(line) => lines.push(line),
            Err(detail) => {
                rejections += 1;
                if rejected.len() < REJECTED_MAX {
                    rejected.push(RejectedRecord { record: index + 1, detail });
                }
            }
        }
    }
    counter!("argus_shipped_records_total", "outcome" => "rejected").increment(rejections);
    let accepted = lines.len();
    if accepted == 0 {
        let detail = match rejected.first() {
            Some(first) => format!("no record can be counted; record {}: {}", first.record, first.detail),
            None => "the body has no records; send one JSON object per line".to_owned(),
        };
        return Err(Problem::invalid(detail));
    }
    let epoch = context.shipped.count(lines).await?;
    counter!("argus_shipped_records_total", "outcome" => "counted").increment(accepted as u64);
    Ok(Json(LinesBody { accepted, rejections, rejected, epoch }))
}

/// The fields of a record, and its text.
type Record = (Map<String, Value>, Vec<u8>);

/// The records of a body, each with the reason if it is none.
fn records(body: &[u8]) -> Box<dyn Iterator<Item = Result<Record, String>> + '_> {
    fn object(value: Value, text: Vec<u8>) -> Result<Record, String> {
        match value {
            Value::Object(record) => Ok((record, text)),
            _ => Err("it is not a JSON object".to_owned()),
        }
    }
    if body.trim_ascii_start().first() == Some(&b'[') {
        return match serde_json::from_slice::<Vec<Value>>(body) {
            Ok(values) => Box::new(values.into_iter().map(|value| {
                let text = value.to_string().into_bytes();
                object(value, text)
            })),
            Err(error) => Box::new(std::iter::once(Err(format!("the array is not JSON: {error}")))),
        };
    }
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    Box::new(lines.map(|line| match serde_json::from_slice(line) {
        Ok(value) => object(value, line.to_vec()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }))
}

/// The line of a record.
fn line(record: Map<String, Value>, text: Vec<u8>, defaults: &Defaults) -> Result<Line, String> {
    let field = |name: &str, default: &Option<String>| match record.get(name) {
        None | Some(Value::Null) => Ok(default.clone()),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("its {name} is not a string")),
    };
    let required = |name: &str, default| field(name, default)?.ok_or_else(|| format!("it has no {name}"));
    let sender = Sender {
        vehicle_id: required("vehicle_id", &defaults.vehicle_id)?,
        vin: required("vin", &defaults.vin)?,
        platform: field("platform", &defaults.platform)?,
        firmware: field("firmware", &defaults.firmware)?,
    };
    sender.batch(STREAM).check().map_err(|invalid| invalid.to_string())?;
    let file = field("file", &defaults.file)?.unwrap_or_else(|| FILE_DEFAULT.to_owned());
    // Shippers give the path on the vehicle.
    let file = file.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    check_name(&file).map_err(|invalid| invalid.to_string())?;
    let message = MESSAGES.iter().find_map(|name| record.get(*name)?.as_str());
    let text = match message {
        Some(message) if !LEVELS.iter().any(|name| record.contains_key(*name)) => message.as_bytes().to_vec(),
        _ => text,
    };
    if text.is_empty() {
        return Err("its line is empty".to_owned());
    }
    Ok(Line { sender, file, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(record: &str) -> Result<String, String> {
        let defaults = Defaults {
            vehicle_id: None,
            vin: Some("WVWZZZ1JZXW000001".to_owned()),
            platform: None,
            firmware: None,
            file: None,
        };
        let (record, text) = records(record.as_bytes()).next().expect("a record")?;
        let line = line(record, text, &defaults)?;
        Ok(format!("{} {} {}", line.sender.vehicle_id, line.file, String::from_utf8_lossy(&line.text)))
    }

    #[test]
    fn a_record_is_a_line() {
        for (record, expected) in [
            (r#"{"vehicle_id":"v","message":"E_FAIL","timestamp":"2026-03-01T10:00:00Z"}"#, "v lines.log E_FAIL"),
            (r#"{"vehicle_id":"v","log":"E_FAIL\n","file":"/var/log/ota.log"}"#, "v ota.log E_FAIL\n"),
            (r#"[{"vehicle_id":"v","line":"x"}]"#, "v lines.log x"),
            (
                r#"{"vehicle_id":"v","level":"error","message":"x"}"#,
                "v lines.log {\"vehicle_id\":\"v\",\"level\":\"error\",\"message\":\"x\"}",
            ),
        ] {
            assert_eq!(line_of(record).as_deref(), Ok(expected));
        }
        for (record, reason) in [
            ("{", "not JSON"),
            ("7", "not a JSON object"),
            (r#"{"message":"x"}"#, "no vehicle_id"),
            (r#"{"vehicle_id":"v","vin":"short","message":"x"}"#, "17 characters"),
            (r#"{"vehicle_id":"v","message":""}"#, "empty"),
            (r#"{"vehicle_id":"v","message":"x","file":".."}"#, "name"),
            (r#"{"vehicle_id":7,"message":"x"}"#, "not a string"),
        ] {
            let rejected = line_of(record).expect_err(record);
            assert!(rejected.contains(reason), "{record}: {rejected}");
        }
    }
}
