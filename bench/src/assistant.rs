//! Explanations by a language model, judged by their evidence and not by another model: a scripted model, which states
//! what is wrong on purpose, and the real one that `ARGUS_LLM_URL` and `ARGUS_LLM_MODEL` name, if they do.
//!
//! Of the ill vehicles, half have a code whose cause the catalogue knows, and half one that nobody knows: there a model should
//! name no cause.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::client::Connection;
use crate::results::{Measurement, Run};
use crate::scripted_model::ScriptedModel;
use crate::server::Server;

/// Vehicles without a fault: so many that a code of one vehicle stands out.
const HEALTHY: usize = 150;

/// The time limit of all explanations of one round.
const TIMEOUT: Duration = Duration::from_secs(1800);

const POLL_EVERY: Duration = Duration::from_millis(20);

/// Flags of `argus-bench assistant`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Vehicles with a fault of their own.
    #[arg(long, default_value_t = 20)]
    ill: usize,
    /// How often each of their batches is explained.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
}

/// What became of the explanations of a model.
#[derive(Default)]
struct Tally {
    /// Statements that are shown, and that were struck out.
    shown: u64,
    struck: u64,
    /// Of those shown: statements that are known to be wrong.
    wrong: u64,
    /// Explanations of a known and of an unknown cause, each with how many name one.
    known: [u64; 2],
    unknown: [u64; 2],
    failed: u64,
    tokens: u64,
    cost: f64,
}

/// Explains an ill fleet with each model.
pub fn measure(run: &mut Run, args: &Args, runtime: &Runtime) -> Result<()> {
    let scripted = ScriptedModel::default();
    let url = scripted.start(runtime)?;
    evaluate(run, args, "scripted", &["--llm-url", &url, "--llm-model", "scripted"], Some(&scripted))?;
    match (std::env::var("ARGUS_LLM_URL"), std::env::var("ARGUS_LLM_MODEL")) {
        (Ok(_), Ok(model)) => evaluate(run, args, &model, &[], None),
        _ => {
            run.remark(
                "assistant: ARGUS_LLM_URL and ARGUS_LLM_MODEL name no real model, so only the scripted one was asked",
            );
            Ok(())
        }
    }
}

fn evaluate(run: &mut Run, args: &Args, name: &str, flags: &[&str], scripted: Option<&ScriptedModel>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = [flags, &["--llm-prices", "1,10", "--llm-tokens-per-day", "100000000"]].concat();
    let server = Server::start_with(&folder.path().join("data"), &arguments)?;
    let mut connection = Connection::open(server.address())?;
    for vehicle in 0..HEALTHY {
        upload(&mut connection, vehicle, "ETIMEDOUT")?;
    }
    let mut ill = Vec::new();
    for index in 0..args.ill {
        let is_known = index.is_multiple_of(2);
        let code = format!("{}_{index:03}", if is_known { "ERR_PART" } else { "ERR_UNKNOWN" });
        if is_known {
            let entry = json!({"meaning": "A part does not answer.", "cause": "Its connector has come loose."});
            connection.send("PUT", &format!("/api/v1/catalog/{code}"), entry.to_string().as_bytes())?;
        }
        ill.push((upload(&mut connection, HEALTHY + index, &code)?, is_known));
    }
    let mut tally = Tally::default();
    let mut first: Vec<Vec<String>> = Vec::new();
    let mut same = 0_u64;
    let begun = Instant::now();
    for repeat in 0..args.repeats {
        for (index, (batch, is_known)) in ill.iter().enumerate() {
            let path = format!("/api/v1/batches/{batch}/diagnosis");
            let before = if repeat == 0 { Value::Null } else { connection.get(&path)?["explanation"]["at"].take() };
            if repeat > 0 {
                connection.send("POST", &path, b"")?;
            }
            let explanation = explained(&mut connection, &path, &before)?;
            let shown = tally.add(&explanation, *is_known, scripted);
            match first.get(index) {
                None => first.push(shown),
                Some(first) => same += u64::from(*first == shown),
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    tally.report(
        run,
        name,
        scripted,
        (args.repeats > 1).then(|| percent(same, u64::from(args.repeats - 1) * ill.len() as u64)),
    );
    let explanations = f64::from(args.repeats) * ill.len() as f64;
    run.add(Measurement::info("assistant", name, seconds * 1e3 / explanations, "ms each"));
    Ok(())
}

impl Tally {
    /// Counts an explanation; returns the statements that are shown.
    fn add(&mut self, explanation: &Value, is_known: bool, scripted: Option<&ScriptedModel>) -> Vec<String> {
        self.failed += u64::from(explanation["state"] != "completed");
        self.struck += explanation["struck_out"].as_u64().unwrap_or(0);
        self.tokens +=
            ["prompt_tokens", "completion_tokens"].iter().filter_map(|of| explanation[*of].as_u64()).sum::<u64>();
        self.cost += explanation["cost"].as_f64().unwrap_or(0.0);
        let causes = if is_known { &mut self.known } else { &mut self.unknown };
        causes[0] += 1;
        causes[1] += u64::from(!explanation["likely_cause"].is_null());
        let single = ["summary", "likely_cause"].into_iter().map(|name| &explanation[name]);
        let lists = ["known", "guessed", "steps"].into_iter().filter_map(|name| explanation[name].as_array());
        let all = single.chain(lists.flatten()).filter_map(|statement| statement["text"].as_str());
        let shown: Vec<String> = all.map(str::to_owned).collect();
        self.shown += shown.len() as u64;
        let is_wrong = |text: &&String| scripted.is_some_and(|model| model.is_true(text) == Some(false));
        self.wrong += shown.iter().filter(is_wrong).count() as u64;
        shown
    }

    fn report(&self, run: &mut Run, name: &str, scripted: Option<&ScriptedModel>, same: Option<f64>) {
        let targeted =
            |measurement: Measurement, target: f64| Measurement { target: scripted.map(|_| target), ..measurement };
        let asked = self.known[0] + self.unknown[0];
        run.add(Measurement::info("assistant", name, asked as f64, "explanations"));
        let failed = Measurement::lower("assistant", name, percent(self.failed, asked), "% failed");
        run.add(targeted(failed, 0.0));
        run.add(Measurement::info("assistant", name, percent(self.struck, self.shown + self.struck), "% struck"));
        if scripted.is_some() {
            let wrong = Measurement::lower("assistant", name, percent(self.wrong, self.shown), "% wrong shown");
            run.add(targeted(wrong, 0.0));
        }
        let named = Measurement::higher("assistant", name, percent(self.known[1], self.known[0]), "% cause named");
        run.add(targeted(named, 100.0));
        let invented =
            Measurement::lower("assistant", name, percent(self.unknown[1], self.unknown[0]), "% cause invented");
        run.add(targeted(invented, 0.0));
        if let Some(same) = same {
            run.add(targeted(Measurement::higher("assistant", name, same, "% same again"), 100.0));
        }
        run.add(Measurement::info("assistant", name, self.tokens as f64 / asked.max(1) as f64, "tokens each"));
        run.add(Measurement::info("assistant", name, self.cost / asked.max(1) as f64 * 1e3, "cost of 1,000"));
        if let Some(model) = scripted {
            let [right, wrong] = model.made();
            run.remark(format!(
                "assistant: the scripted model made {right} statements that its evidence has, and {wrong} others"
            ));
        }
    }
}

/// An explanation that was written after `before`.
fn explained(connection: &mut Connection, path: &str, before: &Value) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let explanation = connection.get(path)?["explanation"].take();
        let is_written = matches!(explanation["state"].as_str(), Some("completed" | "failed"));
        if is_written && explanation["at"] != *before {
            return Ok(explanation);
        }
        ensure!(begun.elapsed() < TIMEOUT, "{path} has no explanation within {} s", TIMEOUT.as_secs());
        std::thread::sleep(POLL_EVERY);
    }
}

/// A completed batch of a vehicle with a code.
fn upload(connection: &mut Connection, vehicle: usize, code: &str) -> Result<String> {
    let batch = connection.post(
        "/api/v1/batches",
        &json!({"vehicle_id": format!("veh-{vehicle}"), "vin": format!("WVWZZZ1JZXW{vehicle:06}"), "firmware": "7.2.1", "platform": "mk4"}),
    )?;
    let batch = batch["id"].as_str().context("the created batch has no id")?.to_owned();
    let log = format!(
        "2026-03-01T10:00:00Z INFO ota: the download begins now\n2026-03-01T10:00:01Z ERROR ota: failed with {code}\n\
         2026-03-01T10:00:02Z ERROR ota: failed again with {code}\n2026-03-01T10:00:03Z INFO ota: the update ends here\n"
    );
    connection.send("PUT", &format!("/api/v1/batches/{batch}/files/ota.log"), log.as_bytes())?;
    let epoch = connection.complete(&batch)?;
    connection.report_at(&batch, epoch)?;
    Ok(batch)
}

fn percent(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}
