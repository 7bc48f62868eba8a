//! A simulated fleet with known events: logs arrive late, twice, out of order and replaced, and some clocks are wrong.
//! Reports, fleet responses and SQL match the events.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use common::Server;
use reqwest::Method;
use serde_json::{Value, json};

const VEHICLES: usize = 24;
const FIRMWARES: [&str; 2] = ["7.1.0", "7.2.1"];
const CODES: [&str; 5] = ["P0A1F-87", "E_FAIL", "SIGSEGV", "U0100-00", "ERR_FLASH_WRITE"];
/// Implausible clocks: never set, and far ahead.
const WRONG_CLOCKS: [&str; 3] = ["1970-01-01T00:00:07Z", "2106-02-07T06:28:16Z", "9999-12-31T23:59:59Z"];

/// xorshift64*, so that a seed reproduces a fleet.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

/// A line as it happened.
#[derive(Clone)]
struct Line {
    /// `None` if the clock is wrong.
    at: Option<DateTime<Utc>>,
    code: &'static str,
    active: bool,
    text: String,
}

/// What one vehicle logged with one firmware.
struct Drive {
    vin: String,
    firmware: &'static str,
    lines: Vec<Line>,
}

impl Drive {
    fn first(&self) -> DateTime<Utc> {
        self.lines.iter().filter_map(|line| line.at).min().expect("some clocks are right")
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| line.text.as_str()).collect()
    }
}

/// The drives of a fleet, in the order in which they happened.
fn drives(random: &mut Random) -> Vec<Drive> {
    let begin: DateTime<Utc> = "2026-03-01T00:00:00Z".parse().expect("a time");
    let mut drives = Vec::new();
    for vehicle in 0..VEHICLES {
        for (number, firmware) in FIRMWARES.into_iter().enumerate() {
            let mut at = begin + Duration::days(30 * number as i64) + Duration::minutes(random.below(40_000) as i64);
            let mut lines = Vec::new();
            for _ in 0..3 + random.below(12) {
                at += Duration::seconds(1 + random.below(600) as i64);
                // The newer firmware has one code that the older never has.
                let code = CODES[random.below(CODES.len() - usize::from(number == 0))];
                let wrong = random.below(8) == 0 && !lines.is_empty();
                let active = !(code.contains('-') && random.below(4) == 0);
                let clock = match wrong {
                    true => WRONG_CLOCKS[random.below(WRONG_CLOCKS.len())].to_owned(),
                    false => at.to_rfc3339_opts(SecondsFormat::Secs, true),
                };
                let ending = if active { "seen" } else { "not present" };
                let what = if code.contains('-') { "DTC " } else { "" };
                let text = format!("{clock} ERROR ota: {what}{code} {ending}\n");
                lines.push(Line { at: (!wrong).then_some(at), code, active, text });
            }
            drives.push(Drive { vin: format!("WVWZZZ1JZXW0000{vehicle:02}"), firmware, lines });
        }
    }
    drives
}

/// The expected values of a code in some lines.
#[derive(Default, Clone, PartialEq, Debug)]
struct Truth {
    count: u64,
    inactive: u64,
    vehicles: BTreeSet<String>,
    active_vehicles: BTreeSet<String>,
    first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

impl Truth {
    fn add(&mut self, vin: &str, line: &Line) {
        self.count += 1;
        self.inactive += u64::from(!line.active);
        self.vehicles.insert(vin.to_owned());
        if line.active {
            self.active_vehicles.insert(vin.to_owned());
        }
        self.first = [self.first, line.at].into_iter().flatten().min();
        self.last = self.last.max(line.at);
    }
}

fn time(time: Option<DateTime<Utc>>) -> Value {
    time.map_or(Value::Null, |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into())
}

/// Uploads a drive, sometimes twice, or after another log that is replaced. Returns its batch.
async fn upload(server: &Server, random: &mut Random, drive: &Drive) -> String {
    let described = json!({"vehicle_id": format!("veh-{}", drive.vin), "vin": drive.vin, "platform": "p1", "firmware": drive.firmware});
    let id = server.new_batch_of(described).await;
    match random.below(4) {
        0 => drop(server.put(&id, "ota.log", "2026-01-01T00:00:00Z ERROR ota: E_ABORT and SIGBUS\n".repeat(5)).await),
        1 => drop(server.put(&id, "ota.log", drive.text()).await),
        2 => {
            server.put(&id, "wrong.log", "2020-01-01T00:00:00Z ERROR ota: E_ABORT\n").await;
            let answer = server.send(Method::DELETE, &format!("/batches/{id}/files/wrong.log"), "").await;
            assert!(answer.status().is_success());
        }
        _ => {}
    }
    server.put(&id, "ota.log", drive.text()).await;
    server.complete(&id).await;
    id
}

#[tokio::test]
async fn responses_match_the_events_in_any_order_of_arrival() {
    let mut random = Random(0x5EED_2026);
    let drives = drives(&mut random);
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    // The logs arrive in random order.
    let mut order: Vec<usize> = (0..drives.len()).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index + 1));
    }
    let mut ids = vec![String::new(); drives.len()];
    for (number, &index) in order.iter().enumerate() {
        ids[index] = upload(&server, &mut random, &drives[index]).await;
        if number == drives.len() / 2 {
            // Some of it is committed and read in between.
            let epoch = server.get(&format!("/batches/{}", ids[index])).await["epoch"].clone();
            server.get(&format!("/fleet/codes?min_epoch={epoch}")).await;
        }
    }

    let mut by_firmware: BTreeMap<(&str, &str), Truth> = BTreeMap::new();
    for drive in &drives {
        for line in &drive.lines {
            by_firmware.entry((drive.firmware, line.code)).or_default().add(&drive.vin, line);
        }
    }
    let fleet = server.get("/fleet/codes?group_by=firmware&limit=1000").await;
    let fleet = fleet["codes"].as_array().expect("codes");
    assert_eq!(fleet.len(), by_firmware.len(), "{fleet:#?}");
    for code in fleet {
        let truth = &by_firmware[&(code["firmware"].as_str().expect("text"), code["code"].as_str().expect("text"))];
        let actual = ["count", "inactive", "vehicles", "first_seen", "last_seen"].map(|name| code[name].clone());
        let expected = [
            json!(truth.count),
            json!(truth.inactive),
            json!(truth.vehicles.len()),
            time(truth.first),
            time(truth.last),
        ];
        assert_eq!(actual, expected, "{code}");
    }

    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.1.0").await;
    for code in compared["codes"].as_array().expect("codes") {
        let name = code["code"].as_str().expect("text");
        let vehicles = |firmware| by_firmware.get(&(firmware, name)).map_or(0, |truth| truth.active_vehicles.len());
        assert_eq!(
            (&code["vehicles"], &code["against"]["vehicles"]),
            (&json!(vehicles("7.2.1")), &json!(vehicles("7.1.0")))
        );
        // Every vehicle was seen with both.
        assert_eq!(code["test"], "mcnemar_exact");
    }

    // New codes, latest firmware and history follow the times in the logs.
    let mut known: BTreeSet<(String, &str)> = BTreeSet::new();
    let mut in_order: Vec<usize> = (0..drives.len()).collect();
    in_order.sort_by_key(|&index| (drives[index].first(), ids[index].clone()));
    for &index in &in_order {
        let (drive, id) = (&drives[index], &ids[index]);
        let report = server.get(&format!("/batches/{id}/report")).await;
        assert_eq!(report["recorded_first"], time(Some(drive.first())));
        assert_eq!(report["total_errors"], json!(drive.lines.len()));
        for code in report["codes"].as_array().expect("codes") {
            let name = CODES.into_iter().find(|name| code["code"] == *name).expect("one of them");
            let active = drive.lines.iter().any(|line| line.code == name && line.active);
            let is_new = active && !known.contains(&(drive.vin.clone(), name));
            assert_eq!(code["new_for_vehicle"], json!(is_new), "{name} of {} with {}", drive.vin, drive.firmware);
        }
        known.extend(drive.lines.iter().filter(|line| line.active).map(|line| (drive.vin.clone(), line.code)));
    }
    let vin = &drives[0].vin;
    let history = server.get(&format!("/vehicles/{vin}/history")).await;
    let firmwares: Vec<&Value> =
        history["batches"].as_array().expect("batches").iter().map(|one| &one["firmware"]).collect();
    assert_eq!(firmwares, [&json!("7.2.1"), &json!("7.1.0")]);

    let latest = server.sql("SELECT count(*), min(firmware), max(firmware), min(batches) FROM vehicles").await;
    assert_eq!(latest, json!([[VEHICLES, "7.2.1", "7.2.1", 2]]));
    let lines = || drives.iter().flat_map(|drive| &drive.lines);
    let (all, wrong) = (lines().count(), lines().filter(|line| line.at.is_none()).count());
    let sums =
        "SELECT sum(count), sum(inactive), (SELECT count(*) FROM errors WHERE NOT ts_plausible) FROM error_counts";
    let inactive = lines().filter(|line| !line.active).count();
    assert_eq!(server.sql(sums).await, json!([[all, inactive, wrong]]));
    // Implausible clocks do not break grouping by time, and a time range reports how many occurrences it leaves out.
    let days = server.sql("SELECT date_trunc('day', ts) AS day, count(*) FROM errors GROUP BY 1").await;
    assert_eq!(
        days.as_array().expect("rows").iter().map(|row| row[1].as_u64().expect("a count")).sum::<u64>(),
        all as u64
    );
    let march = server.get("/fleet/codes?since=2026-03-01T00:00:00Z&until=2026-03-15T00:00:00Z&limit=1000").await;
    let counted = march["codes"].as_array().expect("codes").iter().map(|code| code["count"].as_u64().expect("a count"));
    let end: DateTime<Utc> = "2026-03-15T00:00:00Z".parse().expect("a time");
    let within = lines().filter(|line| line.at.is_some_and(|at| at < end)).count();
    assert_eq!((counted.sum::<u64>(), &march["without_time"]), (within as u64, &json!(wrong)));
    server.stop();
}

#[tokio::test]
async fn files_are_recounted_with_other_rules_while_the_server_runs() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let receipt = server.put(&id, "a.log", "unit BMS code 17\nE_FAIL\n").await;
    assert!(receipt.get("same_as").is_none());
    let twin = server.put(&id, "b.log", "unit BMS code 17\nE_FAIL\n").await;
    assert_eq!(twin["same_as"], json!({"batch_id": id, "name": "a.log"}));
    server.send(Method::POST, &format!("/batches/{id}/files/s.log/lines"), "unit BMS code 18\n").await;
    server.complete(&id).await;
    let open = server.new_batch().await;
    server.put(&open, "a.log", "unit BMS code 19").await;
    let before = server.sql("SELECT DISTINCT rules FROM files").await;
    server.stop();

    let rules = data.path().join("acme.toml");
    let acme = "[[rule]]\nname = \"acme\"\nform = \"ACME-{unit}-{code}\"\n\
                patterns = [{ pattern = 'unit (?P<unit>[A-Z]+) code (?P<code>[0-9]+)' }]\n";
    std::fs::write(&rules, acme).expect("writes");
    let rules = format!("+{}", rules.display());
    let server = Server::start_with(data.path(), &["--rules", &rules]);
    let old = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(common::counts(&old), json!({"E_FAIL": 2}), "existing counts do not change");
    for batch in [&id, &open] {
        let answer = server.send(Method::POST, &format!("/batches/{batch}/recount"), "").await;
        assert_eq!(answer.status(), 202);
    }
    let expected = json!({"ACME-BMS-17": 2, "ACME-BMS-18": 1, "E_FAIL": 2});
    // The epochs of the recount are not known in advance.
    let mut epoch = old["epoch"].as_u64().expect("an epoch");
    let deadline = common::Deadline::new("the recount");
    let new = loop {
        deadline.check();
        let report = server.get(&format!("/batches/{id}/report?min_epoch={epoch}&timeout_ms=20000")).await;
        if common::counts(&report) == expected {
            break report;
        }
        epoch = report["epoch"].as_u64().expect("an epoch") + 1;
    };
    assert_eq!((&new["status"], &new["final"], &new["total_lines"]), (&json!("completed"), &json!(true), &json!(5)));
    let generations: Vec<&Value> =
        new["files"].as_array().expect("files").iter().map(|file| &file["generation"]).collect();
    assert_eq!(generations, [1, 1, 1], "the same file, counted with other rules");
    while common::counts(&server.get(&format!("/batches/{open}/report")).await) != json!({"ACME-BMS-19": 1}) {
        deadline.check();
        epoch += 1;
        server.get(&format!("/batches/{open}/report?min_epoch={epoch}&timeout_ms=20000")).await;
    }
    // An open line that was counted is continued.
    server.send(Method::POST, &format!("/batches/{open}/files/a.log/lines"), "9\n").await;
    let grown = server.complete(&open).await;
    assert_eq!(common::counts(&grown), json!({"ACME-BMS-199": 1}));
    let after = server.sql("SELECT DISTINCT rules FROM files").await;
    assert!(after != before && after.as_array().is_some_and(|rows| rows.len() == 1), "{before} {after}");
    let fleet = server.sql("SELECT code, sum(count) FROM fleet_codes GROUP BY code ORDER BY code").await;
    let sums = json!([["ACME-BMS-17", 2], ["ACME-BMS-18", 1], ["ACME-BMS-199", 1], ["E_FAIL", 2]]);
    assert_eq!(fleet, sums);
    server.kill();

    let server = Server::start_with(data.path(), &["--rules", &rules]);
    assert_eq!(server.sql("SELECT code, sum(count) FROM fleet_codes GROUP BY code ORDER BY code").await, sums);
    let missing = server.send(Method::POST, "/batches/01a21aa1-1fb6-7242-9018-58dba4f64333/recount", "").await;
    assert_eq!(missing.status(), 404);
    server.stop();
}
