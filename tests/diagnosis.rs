//! Diagnoses of a fleet with planted faults, and what is known of codes.

mod common;

use common::{Server, argus, argus_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const VEHICLES: usize = 240;
/// The vehicle with a fault of its own.
const ILL: usize = 77;

fn vin(vehicle: usize) -> String {
    format!("WVWZZZ1JZXW000{vehicle:03}")
}

async fn upload(server: &Server, vehicle: usize, firmware: &str, log: String) -> String {
    let platform = ["mk3", "mk4"][vehicle % 2];
    let described = json!({"vehicle_id": format!("veh-{vehicle}"), "vin": vin(vehicle), "platform": platform, "firmware": firmware});
    let id = server.new_batch_of(described).await;
    server.put(&id, "ota.log", log).await;
    server.complete(&id).await;
    id
}

/// The log of a vehicle: codes that many have, a regression of the new firmware on one platform, and the fault of one.
fn log(vehicle: usize, firmware: &str) -> String {
    let day = if firmware == "7.1.0" { 1 } else { 2 };
    let line = |second: usize, code: &str| {
        format!("2026-03-{day:02}T10:{:02}:{:02}Z ERROR ota: failed with {code}\n", second / 60, second % 60)
    };
    let mut log = line(0, "ETIMEDOUT");
    if vehicle.is_multiple_of(3) {
        log += &line(1800, "HTTP status 503 ERRNO ECONNRESET");
    }
    if firmware == "7.2.1" && vehicle % 2 == 1 && !vehicle.is_multiple_of(5) {
        log += &line(2000, "ERR_FLASH_WRITE");
    }
    if vehicle == ILL && firmware == "7.2.1" {
        for second in 0..12 {
            log += &line(2400 + second / 6, "DTC U0100-87 stored");
        }
    }
    log + &line(3500, "ETIMEDOUT")
}

#[tokio::test]
async fn planted_faults_are_found_and_healthy_batches_have_no_finding() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    for vehicle in 0..VEHICLES {
        upload(&server, vehicle, "7.1.0", log(vehicle, "7.1.0")).await;
    }
    let mut batches = Vec::new();
    for vehicle in 0..VEHICLES {
        batches.push(upload(&server, vehicle, "7.2.1", log(vehicle, "7.2.1")).await);
    }
    server.final_report(&batches[VEHICLES - 1], 0).await;
    let last = server.get(&format!("/batches/{}", batches[VEHICLES - 1])).await["epoch"].clone();
    let mut regressed = 0;
    for (vehicle, batch) in batches.iter().enumerate() {
        server.get(&format!("/batches/{batch}/report?min_epoch={last}")).await;
        let diagnosis = server.get(&format!("/batches/{batch}/diagnosis")).await;
        let found: Vec<&str> = diagnosis["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .map(|finding| finding["code"].as_str().expect("text"))
            .collect();
        let raised = vehicle % 2 == 1 && !vehicle.is_multiple_of(5);
        let mut expected = Vec::new();
        if raised {
            expected.push("ERR_FLASH_WRITE");
        }
        if vehicle == ILL {
            expected.push("U0100-87");
        }
        assert_eq!(found, expected, "vehicle {vehicle}: {diagnosis}");
        regressed += usize::from(raised);
    }
    assert!(regressed > 90);

    let ill = server.get(&format!("/batches/{}/diagnosis", batches[ILL])).await;
    let evidence = |finding: &Value, kind: &str| {
        let all = finding["evidence"].as_array().expect("evidence");
        all.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("{kind} of {finding}")).clone()
    };
    let firmware = evidence(&ill["findings"][0], "firmware");
    assert_eq!([&firmware["found"], &firmware["of"]], [&json!(96), &json!(240)], "{ill}");
    assert_eq!([&firmware["against_found"], &firmware["against_of"]], [&json!(0), &json!(240)]);
    assert_eq!((&firmware["test"], &ill["previous_firmware"]), (&json!("fisher_exact_two_sided"), &json!("7.1.0")));
    assert!(firmware["q_value"].as_f64().is_some_and(|q| q < 1e-10));
    let own = &ill["findings"][1];
    // 119 other vehicles of its platform, and none has it; 239 others with its firmware.
    let rare = evidence(own, "rare");
    assert_eq!((&rare["found"], rare["p_value"].as_f64().is_some_and(|p| p <= 1.0 / 120.0)), (&json!(0), true));
    evidence(own, "new");
    let burst = evidence(own, "burst");
    assert_eq!([&burst["found"], &burst["of"]], [&json!(12), &json!(12)], "{burst}");
    let report = server.get(&format!("/batches/{}/report", batches[ILL])).await;
    assert_eq!(report["diagnosis"]["codes"], json!(["ERR_FLASH_WRITE", "U0100-87"]));
    assert_eq!(report["diagnosis"]["summary"], ill["summary"]);
    assert_eq!(own["evidence"][0]["kind"], "rare", "what makes it a finding comes first: {own}");
    assert!(
        ill["summary"].as_str().is_some_and(|text| text.starts_with("ERR_FLASH_WRITE stands out: 96 of 240")),
        "{ill}"
    );
    assert_eq!((&own["line"]["file"], &own["id"], &own["count"]), (&json!("ota.log"), &json!("F2"), &json!(12)));
    assert!(own["catalog"]["meaning"].as_str().is_some_and(|text| text.contains("missing message")));
    assert!(!ill.to_string().contains(&vin(ILL)), "a diagnosis does not name the vehicle");
    assert_eq!(ill["others"]["top"][0]["code"], "ETIMEDOUT");

    // Replaced: the finding goes with its lines. An open batch has no diagnosis.
    let reopened = server.send(Method::POST, &format!("/batches/{}/reopen", batches[ILL]), "").await;
    assert!(reopened.status().is_success());
    let none = server.send(Method::GET, &format!("/batches/{}/diagnosis", batches[ILL]), "").await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
    assert!(none.text().await.expect("text").contains("no-diagnosis"));
    server.put(&batches[ILL], "ota.log", log(ILL, "7.1.0").replace("2026-03-01", "2026-03-02")).await;
    let completed = server.complete(&batches[ILL]).await;
    server.final_report(&batches[ILL], completed["epoch"].as_u64().expect("an epoch")).await;
    let healed = server.get(&format!("/batches/{}/diagnosis", batches[ILL])).await;
    assert_eq!(healed["findings"], json!([]), "{healed}");
    let report = server.get(&format!("/batches/{}/report", batches[ILL])).await;
    assert_eq!(report["diagnosis"]["codes"], json!([]), "{report}");
    for (id, status) in [("01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e", 404), ("x", 404)] {
        let answer = server.send(Method::GET, &format!("/batches/{id}/diagnosis"), "").await;
        assert_eq!(answer.status().as_u16(), status);
    }

    let code = server.get("/codes/ERR_FLASH_WRITE").await;
    assert_eq!((&code["description"], &code["firmwares"][0]["name"]), (&Value::Null, &json!("7.2.1")));
    assert_eq!((&code["platforms"][0]["name"], &code["platforms"][0]["vehicles"]), (&json!("mk4"), &json!(95)));
    let unseen = server.get("/codes/P0171-16").await;
    assert_eq!(unseen["firmwares"], json!([]));
    let unknown = server.send(Method::GET, "/codes/NOTHING", "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let entries = server.get("/catalog?q=no+space").await;
    assert!(entries["entries"].as_array().expect("entries").iter().any(|entry| entry["code"] == "ENOSPC"), "{entries}");
    assert_eq!(server.get("/catalog?q=NRC:36-72").await["entries"].as_array().map(Vec::len), Some(1));

    // What the user knows is shown at once: the entry that fits the platform best.
    for (entry, status) in [
        (json!({"meaning": "the flash is worn", "remedy": "replace the unit"}), 201),
        (
            json!({"meaning": "the flash of mk4 is worn", "platform": "mk4", "links": ["https://wiki.example/flash"]}),
            201,
        ),
        (json!({"meaning": "the flash of mk9 is worn", "platform": "mk9"}), 201),
        (json!({"meaning": "the flash of mk4 is slow", "platform": "mk4"}), 200),
        (json!({"meaning": ""}), 422),
        (json!({"meaning": "x", "severity": "bad"}), 422),
        (json!({"meaning": "x", "links": ["javascript:alert(1)"]}), 422),
        (json!({"meaning": "x", "code": "OTHER"}), 422),
        (json!({"meaning": "x".repeat(5000)}), 422),
        (json!({"cause": "x"}), 422),
    ] {
        let answer = server.send(Method::PUT, "/catalog/ERR_FLASH_WRITE", entry.to_string()).await;
        assert_eq!(answer.status().as_u16(), status, "{entry}");
    }
    let explained = server.get(&format!("/batches/{}/diagnosis", batches[1])).await;
    let entry = &explained["findings"][0]["catalog"];
    assert_eq!(
        (&entry["meaning"], &entry["source"]),
        (&json!("the flash of mk4 is slow"), &json!("user")),
        "{explained}"
    );
    assert_eq!(server.get("/codes/ERR_FLASH_WRITE").await["description"]["meaning"], "the flash is worn");
    assert_eq!(server.get("/catalog?q=worn+flash").await["entries"].as_array().map(Vec::len), Some(2));
    for (query, status) in [("?platform=mk4", 204), ("?platform=mk4", 404), ("", 204), ("?platform=mk9", 204)] {
        let answer = server.send(Method::DELETE, &format!("/catalog/ERR_FLASH_WRITE{query}"), "").await;
        assert_eq!(answer.status().as_u16(), status, "{query}");
    }
    assert_eq!(server.get("/codes/ERR_FLASH_WRITE").await["description"], Value::Null);
    server.stop();
}

#[test]
fn files_are_diagnosed_without_a_server() {
    let log = b"2026-03-01T10:00:00Z WARN net: HTTP status 503 from server\nERROR bms: DTC U0100-87 stored\nERROR write failed: ENOSPC\n\
                ERROR write failed: ENOSPC\nACME-17 odd\n";
    let output = argus(&["diagnose", "-", "--format", "json"], log);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let diagnosis: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let first = &diagnosis["findings"][0];
    assert_eq!((&first["code"], &first["id"], &first["line"]["line"]), (&json!("ENOSPC"), &json!("F1"), &json!(3)));
    assert!(first["catalog"]["remedy"].as_str().is_some_and(|text| text.contains("free space")));
    let table = argus_with(&["diagnose", "-", "--format", "table"], &[("NO_COLOR", "1".to_owned())], log);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("ENOSPC is the most severe") && table.contains("to do: free space"), "{table}");
    let csv = argus(&["diagnose", "-", "--format", "csv"], log);
    assert!(String::from_utf8_lossy(&csv.stdout).starts_with("id,code,severity,"));
    assert_eq!(argus(&["diagnose"], b"").status.code(), Some(2));
    assert_eq!(argus(&["diagnose", "/nowhere.log"], b"").status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_is_imported_from_a_file_and_survives_a_restart() {
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let server = Server::start(data.path());
    let root = server.root_url("/");
    let import = async |name: &str, bytes: &[u8]| {
        let file = files.path().join(name);
        std::fs::write(&file, bytes).expect("writes");
        let arguments = ["catalog", "import", file.to_str().expect("text"), "--server", &root].map(str::to_owned);
        let output = tokio::task::spawn_blocking(move || argus(&arguments.each_ref().map(String::as_str), b""));
        let output = output.await.expect("no panic");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let many: String = (0..1200).map(|number| format!("ACME-{number},\"worn, <b>old</b>\",,info\n")).collect();
    let (code, text) = import("a.csv", format!("code,meaning,firmware,severity\n{many}").as_bytes()).await;
    assert_eq!((code, text.as_str()), (Some(0), "1200 entries added, 0 replaced\n"));
    let entries =
        json!([{"code": "ACME-7", "meaning": "other"}, {"code": "ACME-7", "meaning": "of 7", "firmware": "7"}]);
    let (code, text) = import("b.json", entries.to_string().as_bytes()).await;
    assert_eq!((code, text.as_str()), (Some(0), "1 entries added, 1 replaced\n"));
    for (name, bytes, words) in [
        ("twice.csv", &b"code,meaning\nA-1,x\nA-1,y\n"[..], "is there twice"),
        ("latin.csv", b"code,meaning\nA-1,caf\xe9\n", "line 2 is not UTF-8"),
        ("empty.csv", b"code,meaning\nA-1,\n", "meaning of a catalogue entry must not be empty"),
        ("odd.csv", b"code,meaning,colour\nA-1,x,red\n", "colour"),
        ("bad.json", b"[{]", "JSON"),
    ] {
        let (code, text) = import(name, bytes).await;
        assert!(code == Some(1) && text.contains(words), "{name}: {text}");
    }
    // SQL sees entries at once, whatever is cached.
    let known = "SELECT meaning, firmware, source FROM catalog WHERE code = 'ACME-7' ORDER BY firmware NULLS FIRST";
    let rows = json!([["other", null, "user"], ["of 7", "7", "user"]]);
    assert_eq!(server.sql(known).await, rows);
    let deleted = server.send(Method::DELETE, "/catalog/ACME-7?firmware=7", "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(server.sql(known).await, json!([["other", null, "user"]]));
    assert_eq!(import("b.json", entries.to_string().as_bytes()).await.0, Some(0));
    assert_eq!(server.sql(known).await, rows);
    let built_in = server.sql("SELECT source <> 'user', remedy IS NULL FROM catalog WHERE code = 'ENOSPC'").await;
    assert_eq!(built_in, json!([[true, false]]));
    server.kill();
    let server = Server::start(data.path());
    assert_eq!(server.get("/codes/ACME-7").await["description"]["meaning"], "other");
    assert_eq!(server.get("/codes/ACME-8").await["description"]["meaning"], "worn, <b>old</b>");
    assert_eq!(server.get("/catalog?q=ACME-7").await["entries"][1]["firmware"], "7");
    let unseen = server.send(Method::GET, "/codes/A-1", "").await;
    assert_eq!(unseen.status(), StatusCode::NOT_FOUND);
    server.stop();
}

#[tokio::test]
async fn codes_are_compared_with_the_past_and_with_those_around_them() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let quiet = "2026-03-01T10:00:00Z INFO ota: step\n".repeat(4000) + "2026-03-01T10:00:00Z ERROR ota: E_LOUD\n";
    upload(&server, 1, "7.1.0", quiet).await;
    // Every 100 lines, one code and five lines later the other.
    let log: String = (0..1200)
        .map(|line| match line % 100 {
            40 => format!("2026-03-02T10:{:02}:00Z WARN bus: E_CAUSE\n", line / 20 % 60),
            45 => format!("2026-03-02T10:{:02}:00Z ERROR bus: E_EFFECT\n", line / 20 % 60),
            80 => format!("2026-03-02T10:{:02}:00Z ERROR ota: E_LOUD\n", line / 20 % 60),
            _ => format!("2026-03-02T10:{:02}:00Z INFO ota: step {line}\n", line / 20 % 60),
        })
        .collect();
    let batch = upload(&server, 1, "7.1.5", log).await;
    // The entry of the range says how severe the code is.
    for (firmware, severity) in [(">=7.1.2 <7.2", "critical"), (">=7.2", "info")] {
        let entry = json!({"meaning": "the bus is broken", "firmware": firmware, "severity": severity}).to_string();
        assert_eq!(server.send(Method::PUT, "/catalog/E_EFFECT", entry).await.status(), StatusCode::CREATED);
    }
    let wrong = json!({"meaning": "m", "firmware": "> 7"}).to_string();
    let refused = server.send(Method::PUT, "/catalog/E_EFFECT", wrong).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    server.final_report(&batch, 0).await;
    let diagnosis = server.get(&format!("/batches/{batch}/diagnosis")).await;
    let evidence = |code: &str, kind: &str| -> Value {
        let top = diagnosis["others"]["top"].as_array().expect("codes");
        let of_code = top.iter().find(|one| one["code"] == code).unwrap_or_else(|| panic!("{code}: {diagnosis}"));
        let all = of_code["evidence"].as_array().expect("evidence");
        all.iter().find(|one| one["kind"] == kind).cloned().unwrap_or(Value::Null)
    };
    let past = evidence("E_LOUD", "past");
    assert_eq!([&past["found"], &past["of"]], [&json!(12), &json!(1200)], "{diagnosis}");
    assert_eq!([&past["against_found"], &past["against_of"]], [&json!(1), &json!(4001)]);
    assert_eq!(past["test"], "poisson_rates_exact");
    assert!(evidence("E_EFFECT", "past").is_null(), "it has no past");
    let together = evidence("E_EFFECT", "together");
    assert_eq!([&together["found"], &together["of"], &together["against_of"]], [&json!(12), &json!(12), &json!(48)]);
    assert!(
        together["text"].as_str().is_some_and(|text| text.contains("E_CAUSE is too, always before it")),
        "{together}"
    );
    assert!(evidence("E_LOUD", "together").is_null(), "{diagnosis}");
    let effect = diagnosis["others"]["top"].as_array().expect("codes").iter().find(|one| one["code"] == "E_EFFECT");
    assert_eq!(effect.expect("it is listed")["severity"], "critical");
    server.stop();
}
