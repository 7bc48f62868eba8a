//! Users' entries of the catalogue: what they know of a code.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::batch::Invalid;
use crate::domain::firmware_range::FirmwareRange;

/// The limit of a code, of a platform and of a firmware, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// The limit of a text, in bytes (4 KiB).
const TEXT_BYTES_MAX: usize = 4 << 10;

/// The limit of the links of an entry.
const LINKS_MAX: usize = 10;

/// What is known of a code, everywhere or on one platform or with one firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// The code.
    #[serde(default)]
    pub code: String,
    /// Only on this hardware platform.
    #[serde(default)]
    pub platform: Option<String>,
    /// Only with this firmware, or with those of a range of versions, such as `>=7.1 <7.3`.
    #[serde(default)]
    pub firmware: Option<String>,
    /// What it means.
    pub meaning: String,
    /// `critical`, `error`, `warning` or `info`.
    #[serde(default)]
    pub severity: Option<String>,
    /// What usually causes it.
    #[serde(default)]
    pub cause: Option<String>,
    /// What to do.
    #[serde(default)]
    pub remedy: Option<String>,
    /// Where to read more: `https://…`.
    #[serde(default)]
    pub links: Vec<String>,
}

impl CatalogEntry {
    /// Checks it.
    pub fn check(&self) -> Result<(), Invalid> {
        let of_name = |field, name: &str| match name {
            "" => Err(Invalid::Entry { field, reason: "must not be empty" }),
            name if name.len() > NAME_BYTES_MAX => Err(Invalid::Entry { field, reason: "is longer than 256 bytes" }),
            name if name.chars().any(char::is_control) => {
                Err(Invalid::Entry { field, reason: "has control characters" })
            }
            _ => Ok(()),
        };
        of_name("code", &self.code)?;
        self.platform.as_deref().map_or(Ok(()), |platform| of_name("platform", platform))?;
        self.firmware.as_deref().map_or(Ok(()), |firmware| of_name("firmware", firmware))?;
        if self.firmware.as_deref().is_some_and(|firmware| FirmwareRange::of(firmware).is_err()) {
            let reason = "must be a firmware, or a range of versions such as \">=7.1 <7.3\"";
            return Err(Invalid::Entry { field: "firmware", reason });
        }
        if self.meaning.trim().is_empty() {
            return Err(Invalid::Entry { field: "meaning", reason: "must not be empty" });
        }
        for (field, text) in
            [("meaning", Some(&self.meaning)), ("cause", self.cause.as_ref()), ("remedy", self.remedy.as_ref())]
        {
            if text.is_some_and(|text| text.len() > TEXT_BYTES_MAX) {
                return Err(Invalid::Entry { field, reason: "is longer than 4096 bytes" });
            }
        }
        if !matches!(self.severity.as_deref(), None | Some("critical" | "error" | "warning" | "info")) {
            return Err(Invalid::Entry { field: "severity", reason: "must be critical, error, warning or info" });
        }
        // A page shows links: no script may hide in one.
        let is_link = |link: &String| {
            link.len() <= TEXT_BYTES_MAX && (link.starts_with("https://") || link.starts_with("http://"))
        };
        match self.links.len() <= LINKS_MAX && self.links.iter().all(is_link) {
            true => Ok(()),
            false => Err(Invalid::Entry { field: "links", reason: "must be at most 10 http or https URLs" }),
        }
    }

    /// Checks several entries: each, and that no two have the same code, platform and firmware. Says which is wrong.
    pub fn check_all(entries: &[CatalogEntry]) -> Result<(), String> {
        let mut places = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            entry.check().map_err(|invalid| format!("entry {}: {invalid}", index + 1))?;
            if !places.insert((&entry.code, &entry.platform, &entry.firmware)) {
                let code = &entry.code;
                return Err(format!(
                    "entry {}: {code:?} is there twice, with the same platform and firmware",
                    index + 1
                ));
            }
        }
        Ok(())
    }

    /// How well it fits a platform and a firmware; `None` if it is of others. A firmware fits better than a range.
    pub fn fit(&self, platform: Option<&str>, firmware: Option<&str>) -> Option<u8> {
        let of_platform = match self.platform.as_deref() {
            None => 0,
            own if own == platform => 2,
            _ => return None,
        };
        let of_firmware = match self.firmware.as_deref().map(FirmwareRange::of) {
            None => 0,
            Some(Ok(range)) if range.contains(firmware?) => {
                if matches!(range, FirmwareRange::One(_)) {
                    2
                } else {
                    1
                }
            }
            Some(_) => return None,
        };
        Some(of_platform + of_firmware)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_platform_and_firmware_fits_best() {
        let entry = |platform: Option<&str>, firmware: Option<&str>| CatalogEntry {
            code: "E".to_owned(),
            platform: platform.map(str::to_owned),
            firmware: firmware.map(str::to_owned),
            meaning: "m".to_owned(),
            severity: None,
            cause: None,
            remedy: None,
            links: Vec::new(),
        };
        assert_eq!(entry(None, None).fit(Some("a"), Some("1")), Some(0));
        assert_eq!(entry(Some("a"), None).fit(Some("a"), Some("1")), Some(2));
        assert_eq!(entry(None, Some(">=1")).fit(Some("a"), Some("1")), Some(1));
        assert_eq!(entry(None, Some(">1")).fit(Some("a"), Some("1")), None);
        assert_eq!(entry(Some("a"), Some("1")).fit(Some("a"), Some("1")), Some(4));
        assert_eq!(entry(Some("b"), Some("1")).fit(Some("a"), Some("1")), None);
        assert_eq!(entry(None, Some("1")).fit(None, None), None);
    }
}
