//! Pictures of the web pages, taken by Chromium: light, dark, and as wide as a phone.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::demo::Fleet;

/// A kind of picture: its name, the size of the window, and whether the system is dark.
const KINDS: [(&str, &str, bool); 3] =
    [("light", "1280,1000", false), ("dark", "1280,1000", true), ("phone", "500,1000", false)];

/// Flags of `argus-bench screenshots`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder for the pictures, which are named PAGE-KIND.png.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The browser: Chromium, or one with its flags.
    #[arg(long, default_value = "chromium")]
    browser: PathBuf,
}

/// Takes the pictures.
pub async fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {}", args.folder.display()))?;
    let fleet = Fleet::start("127.0.0.1:0").await?;
    let Fleet { base, last, .. } = &fleet;
    let sql = "SELECT+code,+sum(count)+AS+count+FROM+error_counts+GROUP+BY+code+ORDER+BY+2+DESC";
    let batch = answer(base, &format!("/batches/{last}")).await?;
    let codes = answer(base, "/fleet/codes?limit=1").await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (vin, code) = (text(&batch["vin"]), text(&codes["codes"][0]["code"]));
    let pages = [
        ("overview", "/".to_owned()),
        ("batches", "/batches".to_owned()),
        ("batch", format!("/batches/{last}")),
        ("firmware", "/firmware".to_owned()),
        ("codes", "/codes".to_owned()),
        ("code", format!("/codes/{code}")),
        ("vehicles", "/vehicles".to_owned()),
        ("vehicle", format!("/vehicles/{vin}")),
        ("sql", format!("/sql?sql={sql}")),
        ("upload", "/upload".to_owned()),
    ];
    for (page, path) in &pages {
        for (kind, window, is_dark) in KINDS {
            let picture = args.folder.join(format!("{page}-{kind}.png"));
            let profile = tempfile::tempdir()?;
            let mut browser = Command::new(&args.browser);
            browser
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
                .arg(format!("--user-data-dir={}", profile.path().display()))
                .arg(format!("--window-size={window}"))
                .arg(format!("--screenshot={}", picture.display()))
                // 0 is dark, 1 is light.
                .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark)))
                .arg(format!("{base}{path}"));
            let output = tokio::task::spawn_blocking(move || browser.output()).await?;
            let output = output.with_context(|| format!("cannot start {}", args.browser.display()))?;
            ensure!(picture.exists(), "no picture of {path}: {}", String::from_utf8_lossy(&output.stderr));
            writeln!(stdout(), "{}", picture.display())?;
        }
    }
    fleet.server.stop().await
}

/// The answer of the demo's API.
async fn answer(base: &str, path: &str) -> Result<Value> {
    Ok(reqwest::get(format!("{base}/api/v1{path}")).await?.error_for_status()?.json().await?)
}
