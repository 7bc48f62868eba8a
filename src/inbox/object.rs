//! What an object of the inbox says of its vehicle: by its metadata, or by its path.

use std::collections::BTreeMap;

use object_store::path::Path;
use object_store::{Attribute, Attributes};

use crate::domain::batch::{Invalid, NewBatch, check_name, check_vin};

/// The label of the batches: its value is the path of the object.
const LABEL: &str = "inbox";

/// The longest label.
const LABEL_CHARS_MAX: usize = 200;

/// The ends of the names of archives, whose files are counted one by one.
const ARCHIVES: [&str; 8] = [".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4"];

/// Why an object is not counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Unknown {
    #[error(
        "it names no vehicle: give it the metadata vin, or a path with vin=VIN or a folder that is named as the VIN"
    )]
    NoVehicle,
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The batch that an object becomes, and the name of its file.
pub fn described(path: &Path, prefix: &Path, attributes: &Attributes) -> Result<(NewBatch, String), Unknown> {
    let below: Vec<String> = match path.prefix_match(prefix) {
        Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect(),
        None => path.parts().map(|part| part.as_ref().to_owned()).collect(),
    };
    let (name, folders) = below.split_last().ok_or(Unknown::NoVehicle)?;
    let mut fields: BTreeMap<&str, String> = BTreeMap::new();
    for folder in folders {
        match folder.split_once('=') {
            Some((field @ ("vin" | "vehicle_id" | "firmware" | "platform"), value)) => {
                fields.insert(field, value.to_owned());
            }
            _ if check_vin(folder).is_ok() => {
                fields.entry("vin").or_insert_with(|| folder.clone());
            }
            _ => {}
        }
    }
    for (attribute, value) in attributes {
        if let Attribute::Metadata(name) = attribute {
            // In headers, names have no underscores.
            match name.to_ascii_lowercase().as_str() {
                "vin" => fields.insert("vin", value.to_string()),
                "vehicle-id" | "vehicle_id" => fields.insert("vehicle_id", value.to_string()),
                "firmware" => fields.insert("firmware", value.to_string()),
                "platform" => fields.insert("platform", value.to_string()),
                _ => None,
            };
        }
    }
    let vin = fields.remove("vin").ok_or(Unknown::NoVehicle)?;
    let vehicle_id = fields.remove("vehicle_id").unwrap_or_else(|| vin.clone());
    let label: String =
        path.as_ref().chars().rev().take(LABEL_CHARS_MAX).collect::<Vec<_>>().into_iter().rev().collect();
    let batch = NewBatch {
        vehicle_id,
        vin,
        platform: fields.remove("platform"),
        firmware: fields.remove("firmware"),
        expected_files: None,
        labels: [(LABEL.to_owned(), label)].into(),
    };
    batch.check()?;
    check_name(name)?;
    Ok((batch, name.clone()))
}

/// Whether the name of an object is that of an archive.
pub fn is_archive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ARCHIVES.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIN: &str = "WVWZZZ1JZXW000001";

    fn of(path: &str, metadata: &[(&'static str, &'static str)]) -> Result<(NewBatch, String), Unknown> {
        let attributes: Attributes =
            metadata.iter().map(|(name, value)| (Attribute::Metadata((*name).into()), *value)).collect();
        described(&Path::from(path), &Path::from("in/box"), &attributes)
    }

    #[test]
    fn the_path_or_the_metadata_name_the_vehicle() {
        let (batch, name) = of(&format!("in/box/2026/{VIN}/ota.log"), &[]).expect("a vehicle");
        assert_eq!((batch.vin.as_str(), batch.vehicle_id.as_str(), name.as_str()), (VIN, VIN, "ota.log"));
        let (batch, _) =
            of(&format!("in/box/firmware=7.2.1/vin={VIN}/vehicle_id=veh-1/platform=mk4/a"), &[]).expect("a vehicle");
        assert_eq!(
            (batch.vehicle_id.as_str(), batch.firmware.as_deref(), batch.platform.as_deref()),
            ("veh-1", Some("7.2.1"), Some("mk4"))
        );
        assert_eq!(batch.labels["inbox"], format!("in/box/firmware=7.2.1/vin={VIN}/vehicle_id=veh-1/platform=mk4/a"));
        let (batch, _) =
            of("in/box/a.log", &[("vin", VIN), ("vehicle-id", "veh-2"), ("other", "x")]).expect("a vehicle");
        assert_eq!((batch.vin.as_str(), batch.vehicle_id.as_str()), (VIN, "veh-2"));
    }

    #[test]
    fn an_object_without_a_vehicle_is_not_counted() {
        assert_eq!(of("in/box/a.log", &[]), Err(Unknown::NoVehicle));
        // The prefix names none.
        assert_eq!(
            described(&Path::from(format!("{VIN}/a.log")), &Path::from(VIN), &Attributes::new()),
            Err(Unknown::NoVehicle)
        );
        assert!(matches!(of("in/box/vin=short/a.log", &[]), Err(Unknown::Invalid(_))));
        assert!(is_archive("logs.TAR.gz") && is_archive("a.zip") && !is_archive("a.log.gz") && !is_archive("zip"));
    }
}
