//! Logs of OpenTelemetry: `POST /v1/logs`, in protobuf or JSON, as the OTLP specification (1.x) describes it.
//!
//! A log record becomes a line of text: its time, its severity, its scope and its body. A record without time and
//! severity is a line that a collector has read from a file, and is counted as it is.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat};
use metrics::counter;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::json;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Service;
use crate::domain::batch::check_name;
use crate::http::binary::Binary;
use crate::http::error_responses::{
    Conflict, DiskFull, GatewayTimeout, Invalid, TimedOut, TooLong, Unavailable, UnknownEncoding, UploadInterrupted,
};
use crate::http::problem::Problem;
use crate::http::routes::files::content_encoding;
use crate::http::routes::lines::{PART_BYTES_MAX, read_part};
use crate::http::shipped::{Line, ShippedLines};
use crate::ingest::Ingest;
use crate::ingest::slots::Slots;
use crate::pipeline::streams::Sender;

/// The stream of these lines: the label `stream` of their batches.
const STREAM: &str = "otlp";

/// Resource attributes with the vehicle's id, in this order; without one of them, the VIN is its id.
const VEHICLE_ID: [&str; 4] = ["vehicle_id", "vehicle.id", "vehicle", "device.id"];
const VIN: [&str; 2] = ["vin", "vehicle.vin"];
const FIRMWARE: [&str; 3] = ["firmware", "firmware.version", "vehicle.firmware"];
const PLATFORM: [&str; 3] = ["platform", "vehicle.platform", "device.model.identifier"];

/// The file of records whose resource has no `service.name`.
const FILE_DEFAULT: &str = "otlp.log";

/// Characters of a scope or a service that a line shows.
const NAME_CHARS_MAX: usize = 100;

/// Bodies received at once; more wait.
const BODIES_MAX: usize = 32;

/// Objects in a body: a decoded object is many times as long as an encoded empty one.
const OBJECTS_MAX: usize = 200_000;

/// Messages that are nested deeper are not counted: prost refuses them.
const DEPTH_MAX: usize = 100;

#[derive(Clone)]
struct OtlpContext {
    ingest: Ingest,
    slots: Slots,
    shipped: ShippedLines,
    /// Bodies are decoded one at a time: a decoded body may need 64 MiB.
    decoding: Arc<Semaphore>,
}

/// `/v1/logs`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = OtlpContext {
        ingest: service.ingest.clone(),
        slots: Slots::new("otlp", BODIES_MAX),
        shipped: ShippedLines::new(service, STREAM),
        decoding: Arc::new(Semaphore::new(1)),
    };
    OpenApiRouter::new().routes(routes!(logs)).layer(DefaultBodyLimit::disable()).with_state(context)
}

/// Counts logs of OpenTelemetry.
///
/// A resource names its vehicle: `vehicle.id` and `vin`, optionally `firmware` and `platform`. The lines of its records are
/// appended to the file `<service.name>.log`, or to the one that a record's `log.file.name` names, of the vehicle's open
/// batch with the label `stream=otlp`. Records that cannot be counted are rejected, and the others counted (partial
/// success). All lines of a request are counted in one epoch, or none is.
#[utoipa::path(
    post,
    path = "/v1/logs",
    tag = "files",
    params(("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd")),
    request_body(content((Binary = "application/x-protobuf"), (Object = "application/json"))),
    responses(
        (status = 200, description = "ExportLogsServiceResponse, in the format of the request", content((Binary = "application/x-protobuf"), (Object = "application/json"))),
        UploadInterrupted, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, GatewayTimeout, DiskFull,
    ),
)]
async fn logs(State(context): State<OtlpContext>, headers: HeaderMap, body: Body) -> Response {
    let format = match Format::of(&headers) {
        Ok(format) => format,
        Err(problem) => return problem.into_response(),
    };
    match context.count(format, &headers, body).await {
        Ok(response) => format.response(response),
        Err(problem) => format.error(problem),
    }
}

impl OtlpContext {
    async fn count(
        &self,
        format: Format,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<ExportLogsServiceResponse, Problem> {
        let encoding = content_encoding(headers)?;
        self.ingest.check_room()?;
        let (bytes, _slot) = read_part(&self.slots, body, encoding).await?;
        let permit = Arc::clone(&self.decoding).acquire_owned().await.map_err(|error| Problem::internal(&error))?;
        let decoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            Lines::of(format.decode(&bytes)?)
        });
        let Lines { lines, rejected, reason, .. } = decoded.await.map_err(|error| Problem::internal(&error))??;
        counter!("argus_shipped_records_total", "outcome" => "rejected").increment(rejected);
        let accepted = lines.len() as u64;
        if accepted > 0 {
            self.shipped.count(lines).await?;
            counter!("argus_shipped_records_total", "outcome" => "counted").increment(accepted);
        }
        let partial_success = (rejected > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected.try_into().unwrap_or(i64::MAX),
            error_message: reason,
        });
        Ok(ExportLogsServiceResponse { partial_success })
    }
}

fn too_long(detail: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", format!("{detail}; send smaller requests"))
}

/// The format of a request and of its response.
#[derive(Debug, Clone, Copy)]
enum Format {
    Protobuf,
    Json,
}

impl Format {
    fn of(headers: &HeaderMap) -> Result<Format, Problem> {
        let of_header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match of_header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/x-protobuf" | "application/protobuf" => Ok(Format::Protobuf),
            "application/json" => Ok(Format::Json),
            other => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unknown-content-type",
                format!("Content-Type is {other:?}, but must be application/x-protobuf or application/json"),
            )),
        }
    }

    fn decode(self, bytes: &Bytes) -> Result<ExportLogsServiceRequest, Problem> {
        let invalid = |reason: String| {
            let detail = format!("the body is not an ExportLogsServiceRequest: {reason}");
            Problem::new(StatusCode::BAD_REQUEST, "invalid", detail)
        };
        let objects = match self {
            Format::Protobuf => messages(Kind::Request, bytes, 0),
            // Serde takes an array for an object, too.
            Format::Json => memchr::memchr2_iter(b'{', b'[', bytes).count(),
        };
        if objects > OBJECTS_MAX {
            return Err(too_long(format!("a request may have at most {OBJECTS_MAX} records, attributes and values")));
        }
        match self {
            Format::Protobuf => ExportLogsServiceRequest::decode(&**bytes).map_err(|error| invalid(error.to_string())),
            // Serde takes an array for an object.
            Format::Json if bytes.trim_ascii_start().first() != Some(&b'{') => {
                Err(invalid("it is not an object".to_owned()))
            }
            Format::Json => serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string())),
        }
    }

    fn response(self, response: ExportLogsServiceResponse) -> Response {
        match self {
            Format::Protobuf => {
                ([(header::CONTENT_TYPE, "application/x-protobuf")], response.encode_to_vec()).into_response()
            }
            // Without a partial success, the field is absent.
            Format::Json => axum::Json(match response.partial_success {
                Some(partial) => json!({"partialSuccess": {
                    "rejectedLogRecords": partial.rejected_log_records.to_string(),
                    "errorMessage": partial.error_message,
                }}),
                None => json!({}),
            })
            .into_response(),
        }
    }

    /// An error: to protobuf senders a `google.rpc.Status`, as the specification says.
    fn error(self, problem: Problem) -> Response {
        let detail = problem.detail().to_owned();
        let mut response = problem.into_response();
        if let Format::Protobuf = self {
            let status = Status { code: 0, message: detail };
            *response.body_mut() = Body::from(status.encode_to_vec());
            let headers = response.headers_mut();
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        }
        response
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The messages of a request.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Request,
    ResourceLogs,
    Resource,
    ScopeLogs,
    Scope,
    Record,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
    /// A message without records or attributes.
    Other,
}

impl Kind {
    /// The message in a field of this one, if it is one.
    fn field(self, tag: u32) -> Option<Kind> {
        match (self, tag) {
            (Kind::Request, 1) => Some(Kind::ResourceLogs),
            (Kind::ResourceLogs, 1) => Some(Kind::Resource),
            (Kind::ResourceLogs, 2) => Some(Kind::ScopeLogs),
            (Kind::ScopeLogs, 1) => Some(Kind::Scope),
            (Kind::ScopeLogs, 2) => Some(Kind::Record),
            (Kind::Record, 5) | (Kind::KeyValue, 2) | (Kind::ArrayValue, 1) => Some(Kind::AnyValue),
            (Kind::Resource, 1) | (Kind::Scope, 3) | (Kind::Record, 6) | (Kind::KeyValueList, 1) => {
                Some(Kind::KeyValue)
            }
            (Kind::Resource, 3) => Some(Kind::Other),
            (Kind::AnyValue, 5) => Some(Kind::ArrayValue),
            (Kind::AnyValue, 6) => Some(Kind::KeyValueList),
            _ => None,
        }
    }
}

/// The number of messages in an encoded one. What is not valid is found when it is decoded.
fn messages(kind: Kind, mut bytes: &[u8], depth: usize) -> usize {
    let mut count = 1;
    while !bytes.is_empty() && depth < DEPTH_MAX {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { break };
        if wire_type != WireType::LengthDelimited {
            if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        }
        let length = decode_varint(&mut bytes).ok().and_then(|length| usize::try_from(length).ok());
        let Some((inner, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else { break };
        bytes = rest;
        if let Some(kind) = kind.field(tag) {
            count += messages(kind, inner, depth + 1);
        }
    }
    count
}

/// The lines of a request.
#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    /// Their bytes.
    bytes: usize,
    /// Records that are not counted.
    rejected: u64,
    /// Why the first of them is not.
    reason: String,
}

impl Lines {
    fn of(request: ExportLogsServiceRequest) -> Result<Lines, Problem> {
        let mut lines = Lines::default();
        for logs in request.resource_logs {
            lines.add(logs)?;
        }
        Ok(lines)
    }

    /// Adds the lines of a resource. The limit is checked at each line: together they may have more bytes than the request,
    /// because each repeats its scope.
    fn add(&mut self, logs: ResourceLogs) -> Result<(), Problem> {
        let attributes = logs.resource.map(|resource| resource.attributes).unwrap_or_default();
        let sender = sender(&attributes);
        let service = attribute(&attributes, &["service.name"]).map(|name| word(&name));
        let file = service.as_ref().map(|service| format!("{}.log", service.replace('/', "_")));
        let file = file.as_deref().unwrap_or(FILE_DEFAULT);
        for scope_logs in logs.scope_logs {
            let scope = scope_logs.scope.map(|scope| word(&scope.name)).filter(|name| !name.is_empty());
            let component = scope.or_else(|| service.clone());
            for record in scope_logs.log_records {
                match sender.clone().and_then(|sender| line(sender, file, component.as_deref(), record)) {
                    Ok(line) => {
                        self.bytes += line.text.len() + line.file.len();
                        if self.bytes > PART_BYTES_MAX {
                            let detail = format!("the lines of a request may have at most {PART_BYTES_MAX} bytes");
                            return Err(too_long(detail));
                        }
                        self.lines.push(line);
                    }
                    Err(reason) => {
                        self.rejected += 1;
                        if self.reason.is_empty() {
                            self.reason = reason;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The vehicle of a resource, or why there is none.
fn sender(attributes: &[KeyValue]) -> Result<Sender, String> {
    let vin = attribute(attributes, &VIN).ok_or("the resource has no attribute vin")?;
    let sender = Sender {
        vehicle_id: attribute(attributes, &VEHICLE_ID).unwrap_or_else(|| vin.clone()),
        vin,
        platform: attribute(attributes, &PLATFORM),
        firmware: attribute(attributes, &FIRMWARE),
    };
    sender.batch(STREAM).check().map_err(|invalid| invalid.to_string())?;
    Ok(sender)
}

/// The first of some attributes that is there, as text.
fn attribute(attributes: &[KeyValue], names: &[&str]) -> Option<String> {
    let named = |name: &&str| attributes.iter().find(|attribute| attribute.key == **name);
    names.iter().filter_map(named).map(|attribute| text(attribute.value.as_ref())).find(|text| !text.is_empty())
}

/// A value as text: a string as it is, all else as JSON.
fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None => String::new(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(value) => as_json(value).to_string(),
    }
}

fn as_json(value: &Value) -> serde_json::Value {
    let inner = |value: Option<&AnyValue>| {
        let value = value.and_then(|value| value.value.as_ref());
        value.map_or(serde_json::Value::Null, as_json)
    };
    match value {
        Value::StringValue(text) => json!(text),
        Value::BoolValue(flag) => json!(flag),
        Value::IntValue(number) => json!(number),
        Value::DoubleValue(number) => json!(number),
        Value::BytesValue(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::ArrayValue(array) => array.values.iter().map(|value| inner(Some(value))).collect(),
        Value::KvlistValue(list) => {
            let fields = list.values.iter().map(|field| (field.key.clone(), inner(field.value.as_ref())));
            serde_json::Value::Object(fields.collect())
        }
        // Only profiles have them.
        Value::StringValueStrindex(_) => serde_json::Value::Null,
    }
}

/// The beginning of a name as one word, so that it can be the component of a line.
fn word(name: &str) -> String {
    let is_of_word = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    name.chars().take(NAME_CHARS_MAX).map(|c| if is_of_word(c) { c } else { '_' }).collect()
}

/// The line of a record.
fn line(sender: Sender, file: &str, component: Option<&str>, record: LogRecord) -> Result<Line, String> {
    let file = attribute(&record.attributes, &["log.file.name"]).unwrap_or_else(|| file.to_owned());
    let file = file.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    check_name(&file).map_err(|invalid| invalid.to_string())?;
    let mut body = text(record.body.as_ref());
    // What was thrown names the error, in the form of most languages; the body may say it already.
    let thrown =
        ["exception.type", "exception.message", "error.type"].map(|name| attribute(&record.attributes, &[name]));
    let [exception, message, error] = thrown;
    let exception = exception.or(error).filter(|exception| !body.contains(exception));
    if let Some(exception) = exception {
        let _ = match message {
            Some(message) => write!(body, " {exception}: {message}"),
            None => write!(body, " {exception}"),
        };
    }
    if body.is_empty() {
        return Err("a record has no body".to_owned());
    }
    let severity = severity(&record);
    if record.time_unix_nano == 0 && severity.is_none() {
        return Ok(Line { sender, file, text: body.into_bytes() });
    }
    let nanos = if record.time_unix_nano == 0 { record.observed_time_unix_nano } else { record.time_unix_nano };
    let time = i64::try_from(nanos).ok().filter(|nanos| *nanos != 0).map(DateTime::from_timestamp_nanos);
    let time = time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true));
    let component = component.map(|component| format!("{component}:"));
    let words = [time.as_deref(), Some(severity.as_deref().unwrap_or("INFO")), component.as_deref(), Some(&body)];
    let text = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    Ok(Line { sender, file, text: text.into_bytes() })
}

/// The severity of a record by its number, else by its text.
fn severity(record: &LogRecord) -> Option<String> {
    let of_number = match record.severity_number {
        1..=4 => "TRACE",
        5..=8 => "DEBUG",
        9..=12 => "INFO",
        13..=16 => "WARN",
        17..=20 => "ERROR",
        21..=24 => "FATAL",
        _ => {
            let text = record.severity_text.trim();
            let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphabetic());
            return is_word.then(|| text.to_ascii_uppercase());
        }
    };
    Some(of_number.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(request: &str) -> (Vec<String>, u64, String) {
        let bytes = Bytes::copy_from_slice(request.as_bytes());
        let request = Format::Json.decode(&bytes).unwrap_or_else(|problem| panic!("{}", problem.detail()));
        // JSON and protobuf say the same.
        let encoded = Bytes::from(request.encode_to_vec());
        assert!(Format::Protobuf.decode(&encoded).is_ok_and(|decoded| decoded == request));
        let lines = Lines::of(request).unwrap_or_else(|problem| panic!("{}", problem.detail()));
        let Lines { lines, rejected, reason, .. } = lines;
        let shown =
            |line: Line| format!("{} {} {}", line.sender.vehicle_id, line.file, String::from_utf8_lossy(&line.text));
        (lines.into_iter().map(shown).collect(), rejected, reason)
    }

    fn request(resource: &str, records: &str) -> String {
        let attributes = format!(r#"{{"key":"vin","value":{{"stringValue":"WVWZZZ1JZXW000001"}}}}{resource}"#);
        format!(
            r#"{{"resourceLogs":[{{"resource":{{"attributes":[{attributes}]}},"scopeLogs":[{{"scope":{{"name":"ota flash"}},"logRecords":[{records}],"unknown":7}}]}}]}}"#
        )
    }

    #[test]
    fn a_record_is_a_line_with_its_time_severity_scope_and_body() {
        let resource = r#",{"key":"vehicle.id","value":{"stringValue":"veh-7"}},{"key":"service.name","value":{"stringValue":"updater"}}"#;
        let records = [
            r#"{"timeUnixNano":"1772359200123456789","severityNumber":17,"body":{"stringValue":"E_FAIL"}}"#,
            r#"{"observedTimeUnixNano":"1772359200000000000","severityText":"warn","body":{"stringValue":"slow"}}"#,
            r#"{"observedTimeUnixNano":"1772359200000000000","body":{"stringValue":"read from a file"}}"#,
            r#"{"timeUnixNano":"1772359200000000000","severityNumber":9,"body":{"kvlistValue":{"values":[{"key":"code","value":{"intValue":"7"}}]}}}"#,
            r#"{"timeUnixNano":"1772359200000000000","severityNumber":21,"body":{"stringValue":"failed"},"attributes":[{"key":"exception.type","value":{"stringValue":"IOException"}},{"key":"exception.message","value":{"stringValue":"no space"}},{"key":"log.file.name","value":{"stringValue":"/var/log/ota.log"}}]}"#,
        ];
        let (lines, rejected, _) = lines_of(&request(resource, &records.join(",")));
        assert_eq!(
            lines,
            [
                "veh-7 updater.log 2026-03-01T10:00:00.123456Z ERROR ota_flash: E_FAIL",
                "veh-7 updater.log 2026-03-01T10:00:00.000000Z WARN ota_flash: slow",
                "veh-7 updater.log read from a file",
                "veh-7 updater.log 2026-03-01T10:00:00.000000Z INFO ota_flash: {\"code\":7}",
                "veh-7 ota.log 2026-03-01T10:00:00.000000Z FATAL ota_flash: failed IOException: no space",
            ]
        );
        assert_eq!(rejected, 0);
    }

    #[test]
    fn records_without_a_vehicle_or_a_body_are_rejected() {
        let (lines, rejected, reason) = lines_of(&request("", r#"{},{"body":{"stringValue":"x"}}"#));
        assert_eq!((lines.as_slice(), rejected), (&["WVWZZZ1JZXW000001 otlp.log x".to_owned()][..], 1));
        assert_eq!(reason, "a record has no body");
        let (_, rejected, reason) =
            lines_of(&request("", r#"{"body":{"stringValue":"x"}}"#).replace("000001", "short"));
        assert!(rejected == 1 && reason.contains("17 characters"), "{reason}");
        let (_, rejected, reason) =
            lines_of(r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"x"}}]}]}]}"#);
        assert_eq!((rejected, reason.as_str()), (1, "the resource has no attribute vin"));
    }

    #[test]
    fn a_body_of_many_empty_records_is_refused_before_it_is_decoded() {
        let record = [0x12, 0];
        let scope_logs = nested(2, &record.repeat(OBJECTS_MAX));
        let body = Bytes::from(nested(1, &scope_logs));
        let refused = Format::Protobuf.decode(&body).expect_err("too many records");
        assert!(refused.detail().contains("200000"), "{}", refused.detail());
        for empty in ["{}", "[]"] {
            let records = vec![empty; OBJECTS_MAX].join(",");
            let json = format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
            let refused = Format::Json.decode(&json.into()).expect_err("too many records");
            assert!(refused.detail().contains("200000"), "{}", refused.detail());
        }
        assert!(Format::Protobuf.decode(&Bytes::from_static(b"\x0a\x05x")).is_err());
        assert!(Format::Json.decode(&Bytes::from_static(b"{\"resourceLogs\":7}")).is_err());
    }

    #[test]
    fn lines_that_repeat_a_long_scope_have_a_limit() {
        let record = r#"{"severityNumber":9,"body":{"stringValue":"x"}}"#;
        let records = vec![record; 60_000].join(",");
        let scope = "s".repeat(1 << 20);
        let resource = r#"{"attributes":[{"key":"vin","value":{"stringValue":"WVWZZZ1JZXW000001"}}]}"#;
        let json = format!(
            r#"{{"resourceLogs":[{{"resource":{resource},"scopeLogs":[{{"scope":{{"name":"{scope}"}},"logRecords":[{records}]}}]}}]}}"#
        );
        let request = Format::Json.decode(&json.into()).unwrap_or_else(|problem| panic!("{}", problem.detail()));
        let refused = Lines::of(request).err().expect("too long");
        assert!(refused.detail().contains("4194304"), "{}", refused.detail());
    }

    /// A field with a message.
    fn nested(tag: u32, message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_key(tag, WireType::LengthDelimited, &mut bytes);
        prost::encoding::encode_varint(message.len() as u64, &mut bytes);
        bytes.extend_from_slice(message);
        bytes
    }
}
