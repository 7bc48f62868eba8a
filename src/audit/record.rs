//! What is recorded.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::LazyLock;

use chrono::{DateTime, SecondsFormat, Utc};
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The limit of a target and of a detail, in characters.
const TEXT_CHARS_MAX: usize = 512;

/// An action, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was answered, RFC 3339.
    pub at: String,
    /// What was done: the method and the route of a request, such as `PUT /api/v1/batches/{id}/files/{name}`; the
    /// statement of a protocol, such as `postgres query`; or `server`.
    pub action: String,
    /// On what: the path, with `[VIN]` in place of vehicle identification numbers, and with the SHA-256 of the name of a file:
    /// names are erased with their vehicle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The id of the token that it was done with; none on a server without tokens, and where the token was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
    /// The address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// More: for a query, the SHA-256 of its statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Record {
    /// An action that ended now.
    pub fn new(action: impl Into<String>) -> Record {
        Record {
            at: rfc3339(Utc::now()),
            action: action.into(),
            target: None,
            token: None,
            from: None,
            status: None,
            detail: None,
        }
    }

    /// An action of the server itself.
    pub fn of_server(detail: &str) -> Record {
        Record { detail: Some(detail.to_owned()), ..Record::new("server") }
    }

    /// The same on a target, without identities.
    pub fn on(self, target: &str) -> Record {
        let target = without_vehicles(target);
        let target = without_file_names(&target);
        Record { target: Some(without_vins(&target).chars().take(TEXT_CHARS_MAX).collect()), ..self }
    }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// The path with `[VIN]` for what follows `/vehicles/`, also if it is encoded.
fn without_vehicles(path: &str) -> Cow<'_, str> {
    let Some((before, rest)) = path.split_once("/vehicles/") else { return Cow::Borrowed(path) };
    let after = rest.find('/').map_or("", |end| &rest[end..]);
    Cow::Owned(format!("{before}/vehicles/[VIN]{after}"))
}

/// The path with the hash of what follows `/files/`.
fn without_file_names(path: &str) -> Cow<'_, str> {
    let Some((before, rest)) = path.split_once("/files/") else { return Cow::Borrowed(path) };
    let (name, after) = rest.find('/').map_or((rest, ""), |end| rest.split_at(end));
    Cow::Owned(format!("{before}/files/sha256-{}{after}", hex::encode(Sha256::digest(name.as_bytes()))))
}

/// The text with `[VIN]` in place of what may be a vehicle identification number (ISO 3779: 17 letters and digits without
/// I, O and Q).
pub fn without_vins(text: &str) -> Cow<'_, str> {
    static VIN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?i)\b[A-HJ-NPR-Z0-9]{17}\b").ok());
    VIN.as_ref().map_or(Cow::Borrowed(text), |vin| vin.replace_all(text, "[VIN]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_no_vin() {
        let on = |path: &str| Record::new("x").on(path).target.expect("a target");
        assert_eq!(on("/api/v1/vehicles/WVWZZZ1JZXW000001"), "/api/v1/vehicles/[VIN]");
        assert_eq!(on("/api/v1/vehicles/%57VWZZZ1JZXW000001/history"), "/api/v1/vehicles/[VIN]/history");
        assert_eq!(on("/x/wvwzzz1jzxw000002"), "/x/[VIN]");
        let path = |name: &str| on(&format!("/batches/1/files/{name}/lines"));
        assert!(path("veh-1.log").starts_with("/batches/1/files/sha256-") && path("veh-1.log").ends_with("/lines"));
        assert!(!path("veh-1.log").contains("veh-1"));
        let uuid = "/api/v1/batches/01a2202c-c2d0-714f-b48c-df4381b8144a";
        assert_eq!(without_vins(uuid), uuid);
    }
}
