//! The comparison of two firmwares, with every filter: the vehicles equal a plain loop over what was uploaded, and the
//! test fits how the vehicles were seen.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Server;
use reqwest::Method;
use serde_json::{Value, json};

/// A batch of one file.
struct Drive {
    vehicle: usize,
    platform: &'static str,
    firmware: &'static str,
    region: &'static str,
    /// The day of March 2026, the component and the code of each line.
    lines: Vec<(u32, &'static str, &'static str)>,
}

fn drives() -> Vec<Drive> {
    let mut drives = Vec::new();
    for vehicle in 0..36 {
        let platform = ["mk3", "mk4"][vehicle % 2];
        let region = ["north", "south", "west"][vehicle % 3];
        // A third was seen with both: too few for pairs.
        let firmwares = match vehicle % 9 {
            0 => &["7.1.0", "7.2.1"][..],
            1..5 => &["7.1.0"],
            _ => &["7.2.1"],
        };
        for &firmware in firmwares {
            for repeated in 0..1 + vehicle % 2 {
                let day = 1 + (vehicle % 5 + repeated) as u32;
                let mut lines = vec![(day, "boot", "E_STARTED")];
                // The new firmware has a fault on one platform only.
                if firmware == "7.2.1" && platform == "mk4" && vehicle % 7 != 0 {
                    lines.push((day + 1, "flash", "ERR_FLASH_WRITE"));
                }
                if vehicle % 4 == 0 {
                    lines.push((day + 2, ["net", "flash"][vehicle % 8 / 4], "ETIMEDOUT"));
                }
                drives.push(Drive { vehicle, platform, firmware, region, lines });
            }
        }
    }
    drives
}

fn vin(vehicle: usize) -> String {
    format!("WVWZZZ1JZXW0000{vehicle:02}")
}

async fn upload(server: &Server, drive: &Drive) {
    let described = json!({
        "vehicle_id": format!("veh-{}", drive.vehicle), "vin": vin(drive.vehicle), "platform": drive.platform,
        "firmware": drive.firmware, "labels": {"region": drive.region},
    });
    let id = server.new_batch_of(described).await;
    let line = |(day, component, code): &(u32, &str, &str)| {
        format!("2026-03-{day:02}T10:00:00Z ERROR {component}: failed with {code}\n")
    };
    server.put(&id, "ota.log", drive.lines.iter().map(line).collect::<String>()).await;
    server.complete(&id).await;
}

/// Per code: the vehicles with it, with either firmware.
fn expected(
    drives: &[Drive],
    batches: impl Fn(&Drive) -> bool,
    lines: impl Fn(&(u32, &str, &str)) -> bool,
) -> ([usize; 2], BTreeMap<String, [usize; 2]>) {
    let mut all = [BTreeSet::new(), BTreeSet::new()];
    let mut found: BTreeMap<String, [BTreeSet<usize>; 2]> = BTreeMap::new();
    for drive in drives.iter().filter(|drive| batches(drive)) {
        let side = usize::from(drive.firmware == "7.1.0");
        all[side].insert(drive.vehicle);
        for line in drive.lines.iter().filter(|line| lines(line)) {
            found.entry(line.2.to_owned()).or_default()[side].insert(drive.vehicle);
        }
    }
    let found = found.into_iter().map(|(code, sides)| (code, sides.map(|side| side.len())));
    (all.map(|side| side.len()), found.collect())
}

#[tokio::test]
async fn every_filter_selects_what_a_plain_loop_selects() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let drives = drives();
    for drive in &drives {
        upload(&server, drive).await;
    }
    let totals = server.get("/fleet/totals").await;
    let rows = "SELECT firmware, count(DISTINCT vin), count(*) FROM batches GROUP BY firmware \
                ORDER BY min(recorded_first) DESC, firmware DESC";
    let rows = server.sql(rows).await;
    let firmwares = totals["firmwares"].as_array().expect("a list").iter();
    let firmwares: Vec<Value> =
        firmwares.map(|one| json!([one["firmware"], one["vehicles"], one["batches"]])).collect();
    assert_eq!(json!(firmwares), rows);
    let vehicles: BTreeSet<usize> = drives.iter().map(|drive| drive.vehicle).collect();
    assert_eq!([&totals["batches"], &totals["vehicles"]], [&json!(drives.len()), &json!(vehicles.len())]);

    let any_batch = |_: &Drive| true;
    let any_line = |_: &(u32, &str, &str)| true;
    let in_march = |drive: &Drive, from: u32, to: u32| {
        let days = || drive.lines.iter().map(|line| line.0);
        days().max() >= Some(from) && days().min() < Some(to)
    };
    let truths = [
        ("", expected(&drives, any_batch, any_line)),
        ("&platform=mk4", expected(&drives, |drive| drive.platform == "mk4", any_line)),
        ("&label.region=south", expected(&drives, |drive| drive.region == "south", any_line)),
        ("&component=flash", expected(&drives, any_batch, |line| line.1 == "flash")),
        ("&severity=info", expected(&drives, any_batch, |_| false)),
        (
            "&since=2026-03-03T00:00:00Z&until=2026-03-05T00:00:00Z",
            expected(&drives, |drive| in_march(drive, 3, 5), |line| (3..5).contains(&line.0)),
        ),
        (
            "&platform=mk3&label.region=north&component=net",
            expected(&drives, |drive| (drive.platform, drive.region) == ("mk3", "north"), |line| line.1 == "net"),
        ),
    ];
    for (filter, (all, codes)) in truths {
        let compared = server.get(&format!("/fleet/compare?firmware=7.2.1&against=7.1.0{filter}")).await;
        assert_eq!(
            [&compared["vehicles"], &compared["against_vehicles"]],
            [&json!(all[0]), &json!(all[1])],
            "{filter}"
        );
        let actual: BTreeMap<String, [usize; 2]> = compared["codes"]
            .as_array()
            .expect("codes")
            .iter()
            .map(|code| {
                let number = |value: &Value| value.as_u64().expect("a number") as usize;
                assert_eq!(code["vehicles_total"], json!(all[0]));
                let vehicles = [number(&code["vehicles"]), number(&code["against"]["vehicles"])];
                (code["code"].as_str().expect("a code").to_owned(), vehicles)
            })
            .collect();
        assert_eq!(actual, codes, "{filter}");
    }

    // Two platforms: compared within them. The fault is on one of them only.
    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.1.0").await;
    let fault = &compared["codes"][0];
    assert_eq!(fault["code"], "ERR_FLASH_WRITE");
    assert_eq!(fault["test"], "cochran_mantel_haenszel_exact");
    assert_eq!(fault["warnings"], json!(["platforms_disagree"]));
    assert_eq!(fault["platforms"].as_array().map(Vec::len), Some(2));
    assert_eq!((&fault["platforms"][0]["platform"], &fault["platforms"][0]["vehicles"]), (&json!("mk3"), &json!(0)));
    let number = |value: &Value| value.as_f64().expect("a number");
    assert!(number(&fault["difference"]) > 0.3 && number(&fault["interval"][0]) > 0.0, "{fault}");
    assert!(number(&fault["q_value"]) < 0.05);
    // One platform: Fisher's.
    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.1.0&platform=mk4").await;
    assert_eq!(compared["codes"][0]["test"], "fisher_exact_two_sided");
    assert!(compared["codes"][0].get("platforms").is_none());

    for (query, status, words) in [
        ("firmware=7.2.1&against=7.1.0&platform=mk9", 404, "that the filters select"),
        ("firmware=7.2.1&against=7.1.0&severity=bad", 422, "critical, error, warning or info"),
        ("firmware=7.2.1&against=7.1.0&since=yesterday", 422, "RFC 3339"),
        ("firmware=7.2.1&against=7.1.0&group_by=firmware", 422, "unknown parameter"),
    ] {
        let answer = server.send(Method::GET, &format!("/fleet/compare?{query}"), "").await;
        assert_eq!(answer.status().as_u16(), status, "{query}");
        assert!(answer.text().await.expect("text").contains(words), "{query}");
    }
}

#[tokio::test]
async fn vehicles_seen_with_both_are_compared_with_themselves_and_exposure_is_considered() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    for vehicle in 0..12 {
        let old =
            Drive { vehicle, platform: "mk3", firmware: "7.1.0", region: "north", lines: vec![(1, "a", "E_ABORT")] };
        upload(&server, &old).await;
        // The new firmware has sent four batches, one of them with the code that half of the vehicles had before.
        for repeated in 0..4 {
            let mut lines = vec![(2 + repeated, "a", "E_STARTED")];
            if repeated == 0 && vehicle != 0 {
                lines.push((2, "a", "ERR_FLASH_WRITE"));
            }
            let new = Drive { vehicle, platform: "mk3", firmware: "7.2.1", region: "north", lines };
            upload(&server, &new).await;
        }
    }
    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.1.0").await;
    assert_eq!(compared["both_vehicles"], 12);
    assert_eq!(
        (&compared["batches_per_vehicle"], &compared["against_batches_per_vehicle"]),
        (&json!(4.0), &json!(1.0))
    );
    let code = |name: &str| {
        let codes = compared["codes"].as_array().expect("codes");
        codes.iter().find(|code| code["code"] == name).unwrap_or_else(|| panic!("{name} in {compared}")).clone()
    };
    // 11 vehicles have it with the new firmware only: 2 of 2048.
    let new = code("ERR_FLASH_WRITE");
    assert_eq!((&new["test"], &new["change"]), (&json!("mcnemar_exact"), &json!("more")));
    assert!((new["p_value"].as_f64().expect("a number") - 2.0 / 2048.0).abs() < 1e-12, "{new}");
    assert!((new["difference"].as_f64().expect("a number") - 11.0 / 12.0).abs() < 1e-12, "{new}");
    assert_eq!(new["warnings"], json!([]));
    server.stop();

    // More vehicles have it with the new firmware, but only because each has sent four batches: one in four has it.
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let send = async |vehicle: usize, firmware: &'static str, codes: &[&'static str]| {
        let lines = codes.iter().map(|code| (1, "a", *code)).collect();
        upload(&server, &Drive { vehicle, platform: "mk3", firmware, region: "north", lines }).await;
    };
    for vehicle in 0..20 {
        let codes = if vehicle % 2 == 0 { &["ETIMEDOUT", "E_STARTED"][..] } else { &["E_STARTED"] };
        send(vehicle, "7.1.0", codes).await;
        for repeated in 0..4 {
            let codes = if repeated == 0 { &["ETIMEDOUT"][..] } else { &["E_STARTED"] };
            send(20 + vehicle, "7.2.1", codes).await;
        }
    }
    send(20, "7.2.1", &["ERR_ONCE_ONLY"]).await;
    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.1.0").await;
    let code = |name: &str| {
        let codes = compared["codes"].as_array().expect("codes");
        codes.iter().find(|code| code["code"] == name).unwrap_or_else(|| panic!("{name} in {compared}")).clone()
    };
    let exposed = code("ETIMEDOUT");
    assert_eq!((&exposed["change"], &exposed["vehicles"]), (&json!("more"), &json!(20)));
    assert_eq!(exposed["warnings"], json!(["exposure"]), "{exposed}");
    // One vehicle in forty: no result could be significant.
    assert_eq!(code("ERR_ONCE_ONLY")["warnings"], json!(["small_support"]));
    server.stop();
}
