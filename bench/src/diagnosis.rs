//! Diagnoses of a simulated fleet with planted faults, compared with the truth.
//!
//! 500 vehicles on three platforms go through four firmwares. Uploads are late, repeated, replaced and out of order; some
//! clocks were never set. Planted are: a regression of the newest firmware on one platform, a code that is new with it on
//! all platforms, a code that it fixes, and vehicles with a fault of their own.

use anyhow::{Context, Result};
use serde_json::json;

use crate::client::Connection;
use crate::generate::Random;
use crate::results::{Measurement, Run};
use crate::server::Server;

const VEHICLES: usize = 500;
const PLATFORMS: [&str; 3] = ["mk2", "mk3", "mk4"];
const FIRMWARES: [&str; 4] = ["7.0.0", "7.1.0", "7.2.0", "7.3.0"];
const NEWEST: &str = FIRMWARES[3];

/// Codes that many healthy vehicles have, each with its share in percent.
const BACKGROUND: [(&str, u64); 9] = [
    ("ETIMEDOUT", 70),
    ("HTTP:503", 40),
    ("ECONNRESET", 30),
    ("EXIT:1", 25),
    ("P0171-16", 20),
    ("E_RETRY", 15),
    ("SIGPIPE", 12),
    ("EAGAIN", 10),
    ("U0121-00", 8),
];

const REGRESSION: &str = "ERR_FLASH_WRITE";
const NEW: &str = "ERR_SLOT_SWITCH";
const FIXED: &str = "ERR_OLD_LEAK";

/// Faults of single vehicles.
const OWN: [&str; 4] = ["P0A1F-87", "SIGBUS", "EUCLEAN", "U0100-87"];

/// Shares of vehicles in percent, and one vehicle in so many.
const REGRESSION_SHARE: u64 = 60;
const NEW_SHARE: u64 = 25;
const FIXED_SHARE: u64 = 30;
const OWN_EVERY: usize = 50;
const CLOCK_EVERY: usize = 40;

/// Flags of `argus-bench diagnosis`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The seed of the fleet.
    #[arg(long, default_value_t = 2026)]
    seed: u64,
}

/// What a vehicle sends with a firmware.
struct Drive {
    vehicle: usize,
    firmware: usize,
    log: String,
    /// The codes that were planted in it and make a diagnosis.
    planted: Vec<&'static str>,
}

/// Uploads the fleet, and compares every diagnosis with what was planted.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let mut random = Random::new(args.seed);
    let mut drives: Vec<Drive> = Vec::new();
    for firmware in 0..FIRMWARES.len() {
        for vehicle in 0..VEHICLES {
            drives.push(drive(vehicle, firmware, &mut random));
        }
    }
    // Out of order, and late: uploads are not sorted by the times of their logs.
    for index in (1..drives.len()).rev() {
        drives.swap(index, random.below(index as u64 + 1) as usize);
    }
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), None)?;
    let mut connection = Connection::open(server.address())?;
    let (mut batches, mut last) = (Vec::with_capacity(drives.len()), 0);
    for drive in &drives {
        let (batch, epoch) = upload(&mut connection, drive, &mut random)?;
        batches.push(batch);
        last = epoch;
    }
    connection.report_at(&batches[batches.len() - 1], last)?;

    let (mut ill, mut found, mut healthy, mut wrong) = (0_u32, 0_u32, 0_u32, 0_u32);
    for (drive, batch) in drives.iter().zip(&batches) {
        let diagnosis = connection.get(&format!("/api/v1/batches/{batch}/diagnosis"))?;
        let top = diagnosis["findings"][0]["code"].as_str();
        if drive.planted.is_empty() {
            healthy += 1;
            wrong += u32::from(top.is_some());
        } else {
            ill += 1;
            found += u32::from(top.is_some_and(|top| drive.planted.contains(&top)));
        }
    }
    let percent = |part: u32, of: u32| 100.0 * f64::from(part) / f64::from(of.max(1));
    let name = format!("{ill} ill batches");
    let found = Measurement::higher("diagnosis", &name, percent(found, ill), "% found first");
    run.add(Measurement { target: Some(95.0), ..found });
    let name = format!("{healthy} healthy batches");
    let wrong = Measurement::lower("diagnosis", &name, percent(wrong, healthy), "% with a finding");
    run.add(Measurement { target: Some(1.0), ..wrong });
    Ok(())
}

fn drive(vehicle: usize, firmware: usize, random: &mut Random) -> Drive {
    let is_newest = FIRMWARES[firmware] == NEWEST;
    let (mut codes, mut planted) = (Vec::new(), Vec::new());
    for (code, share) in BACKGROUND {
        if random.below(100) < share {
            codes.push(code);
        }
    }
    let mut plant = |code: &'static str| {
        codes.push(code);
        planted.push(code);
    };
    if is_newest && vehicle % PLATFORMS.len() == 1 && random.below(100) < REGRESSION_SHARE {
        plant(REGRESSION);
    }
    if is_newest && random.below(100) < NEW_SHARE {
        plant(NEW);
    }
    if is_newest && vehicle.is_multiple_of(OWN_EVERY) {
        plant(OWN[vehicle / OWN_EVERY % OWN.len()]);
    }
    if !is_newest && random.below(100) < FIXED_SHARE {
        codes.push(FIXED);
    }
    let has_clock = !vehicle.is_multiple_of(CLOCK_EVERY);
    let mut log = String::new();
    let day = 1 + random.below(25);
    for (index, code) in codes.iter().enumerate() {
        for repeated in 0..1 + random.below(3) {
            let (month, minute, second) = (firmware + 1, index as u64 * 5, repeated * 7);
            let year = if has_clock { 2026 } else { 1970 };
            log += &format!("{year}-{month:02}-{day:02}T10:{minute:02}:{second:02}Z ERROR ota: {}\n", text(code));
            log += &format!("{year}-{month:02}-{day:02}T10:{minute:02}:{second:02}Z INFO ota: step {repeated} done\n");
        }
    }
    Drive { vehicle, firmware, log, planted }
}

/// A message with a code.
fn text(code: &str) -> String {
    match code.split_once(':') {
        Some(("HTTP", status)) => format!("download failed: HTTP status {status}"),
        Some(("EXIT", status)) => format!("the script ended: exit code {status}"),
        _ if code.starts_with("SIG") => format!("the process was killed by {code}"),
        _ if code.contains('-') => format!("DTC {code} stored"),
        _ => format!("failed with {code}"),
    }
}

/// Uploads a log as a batch. Some are replaced, repeated, or come after another file that is deleted.
fn upload(connection: &mut Connection, drive: &Drive, random: &mut Random) -> Result<(String, u64)> {
    let vin = format!("WVWZZZ1JZXW{:06}", drive.vehicle);
    let described = json!({
        "vehicle_id": format!("veh-{}", drive.vehicle), "vin": vin, "firmware": FIRMWARES[drive.firmware],
        "platform": PLATFORMS[drive.vehicle % PLATFORMS.len()],
    });
    let batch = connection.post("/api/v1/batches", &described)?;
    let batch = batch["id"].as_str().context("the created batch has no id")?.to_owned();
    let path = format!("/api/v1/batches/{batch}/files/ota.log");
    match random.below(4) {
        0 => drop(connection.send("PUT", &path, b"2026-01-01T00:00:00Z ERROR ota: failed with E_WRONG_FILE\n")?),
        1 => drop(connection.send("PUT", &path, drive.log.as_bytes())?),
        2 => {
            let other = format!("/api/v1/batches/{batch}/files/other.log");
            connection.send("PUT", &other, b"2026-01-01T00:00:00Z ERROR ota: failed with E_OTHER_FILE\n")?;
            connection.send("DELETE", &other, b"")?;
        }
        _ => {}
    }
    connection.send("PUT", &path, drive.log.as_bytes())?;
    let epoch = connection.complete(&batch)?;
    Ok((batch, epoch))
}
