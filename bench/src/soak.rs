//! Soak test: hours of mixed load with kills. All counts stay exact and resource usage stays bounded.
//!
//! ```text
//!  writers ──► model          supervisor: start, kill -9, start again …
//!     │  readers, faults          │        watch: a sample every 10 s
//!     ▼     ▼                     ▼          ▼
//!  the server ──► responses    process ──► bounds
//! ```
//!
//! - [`model`]: the expected counts, and unconfirmed changes; [`texts`]: the uploaded texts;
//! - [`load`]: clients that change batches; [`readers`]: clients that read; [`faults`]: bad requests and bad clients;
//! - [`requests`]: counts and checks every response; [`state`]: the shared state;
//! - [`process`]: starts and stops the server; [`watch`]: measures its resources; [`bounds`]: limits for them;
//! - [`compare`]: compares all live data with the model.

mod bounds;
mod compare;
mod faults;
mod load;
mod model;
mod process;
mod readers;
mod requests;
mod state;
mod texts;
mod watch;

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;

use crate::generate::Random;
use crate::results::{Measurement, Run};
use crate::server::argus_binary;
use crate::soak::load::Limits;
use crate::soak::process::{Process, Setup};
use crate::soak::state::State;
use crate::soak::watch::{Disk, METRICS, Watch};

/// How often a server that exits by itself is restarted.
const EXITS_MAX: u64 = 5;
/// Time limit for outstanding responses when the load ends.
const END_MAX: Duration = Duration::from_secs(240);

/// Flags of `argus-bench soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Duration of the load in minutes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Seed of the random choices; default: chosen and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Mean time between kills of the server, in seconds; 0: never.
    #[arg(long, default_value_t = 180)]
    kill_every: u64,
    /// The --maintain-every of the server.
    #[arg(long, default_value = "5s")]
    maintain_every: String,
    /// The --retention of the server and of `argus maintain`.
    #[arg(long, default_value = "60s")]
    retention: String,
    /// Clients that change batches.
    #[arg(long, default_value_t = 8)]
    writers: u64,
    /// Clients that read.
    #[arg(long, default_value_t = 4)]
    readers: u64,
    /// The most live batches; the oldest are deleted.
    #[arg(long, default_value_t = 400)]
    batches: u64,
    /// The most live text, in MiB.
    #[arg(long, default_value_t = 512)]
    text_mib: u64,
    /// Different codes of one rule that the server counts by name for each upload.
    #[arg(long, default_value_t = 500)]
    codes_per_rule: usize,
    /// The argus binary to run; default: the one in the folder of this program.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Timely workers of the server.
    #[arg(long)]
    workers: Option<u16>,
    /// Minutes between comparisons with the model; there is another one at the end.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    compare_every: u64,
    /// Keep the data directory and the server's log in this new folder; default: keep them only after a failure.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Runs the soak test; reports every difference and every exceeded bound as a failure.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let seed =
        args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ chrono::Utc::now().timestamp().unsigned_abs());
    writeln!(stdout(), "soak of {} minutes, seed {seed}", args.minutes)?;
    let mut soak = Soak::start(args, folder, seed).await?;
    let result = soak.run(args).await;
    soak.state.stop.store(true, Ordering::Relaxed);
    let failures = run.failures.len();
    soak.report(run)?;
    let has_failed = result.is_err() || run.failures.len() > failures;
    if has_failed && args.keep.is_none() {
        run.remark(format!("data and log are in {}", temporary.keep().display()));
    }
    result
}

/// A run.
struct Soak {
    setup: Setup,
    state: Arc<State>,
    watch: Arc<Watch>,
    server: Option<Process>,
    random: Random,
    kills: u64,
    longest_start: Duration,
    stop: Option<Duration>,
    begun: Instant,
    lines: u64,
}

impl Soak {
    async fn start(args: &Args, folder: PathBuf, seed: u64) -> Result<Soak> {
        let data = folder.join("data");
        if data.exists() {
            bail!("{} already exists; use a new folder for --keep", data.display());
        }
        let setup = Setup {
            binary: args.binary.clone().map_or_else(argus_binary, Ok)?,
            data: data.clone(),
            log: folder.join("argus.log"),
            maintain_every: args.maintain_every.clone(),
            retention: args.retention.clone(),
            workers: args.workers,
        };
        let state = Arc::new(State::new(seed, args.codes_per_rule)?);
        let mut soak = Soak {
            setup,
            state,
            watch: Watch::new(data),
            server: None,
            random: Random::new(seed),
            kills: 0,
            longest_start: Duration::ZERO,
            stop: None,
            begun: Instant::now(),
            lines: 0,
        };
        soak.start_server().await?;
        Ok(soak)
    }

    /// The whole run, in order.
    async fn run(&mut self, args: &Args) -> Result<()> {
        let mut clients = self.start_clients(args);
        let mut minutes = 0;
        // Also a short run compares once under load.
        let every = args.compare_every.min(args.minutes.div_ceil(2));
        loop {
            minutes = args.minutes.min(minutes + every);
            self.supervise(Duration::from_secs(minutes * 60), args.kill_every).await?;
            if minutes == args.minutes {
                break;
            }
            if args.kill_every > 0 {
                self.kill().await?;
            }
            self.pause_and_compare(&format!("after {minutes} minutes")).await;
        }
        self.end(&mut clients).await;
        self.pause_and_compare("at the end").await;
        bounds::check_load(&self.state, &self.watch.samples());
        bounds::check_refusals(&self.state);
        self.terminate().await?;
        let printed = self.setup.maintain().await?;
        writeln!(stdout(), "argus maintain: {printed}")?;
        bounds::check_maintained(&self.state, &Disk::look(&self.setup.data), &self.watch.samples());
        self.start_server().await?;
        self.pause_and_compare("after maintenance").await;
        self.terminate().await
    }

    fn start_clients(&self, args: &Args) -> JoinSet<()> {
        let limits = Limits { batches: args.batches, bytes: args.text_mib << 20 };
        let state = || Arc::clone(&self.state);
        let mut clients = JoinSet::new();
        for number in 0..args.writers {
            clients.spawn(load::write(state(), number, limits));
        }
        for number in 0..args.readers {
            clients.spawn(readers::read(state(), number));
        }
        for number in 0..faults::SLOW_UPLOADS {
            clients.spawn(faults::repeat(state(), 100 + number, faults::slow_upload));
        }
        for number in 0..faults::SILENT {
            clients.spawn(faults::repeat(state(), 200 + number, faults::silent));
        }
        for number in 0..faults::NEVER_READING {
            clients.spawn(faults::repeat(state(), 300 + number, faults::never_reading));
        }
        for number in 0..faults::FOLLOWERS {
            clients.spawn(faults::repeat(state(), 400 + number, faults::follow));
        }
        clients.spawn(Arc::clone(&self.watch).run(state()));
        clients
    }

    async fn start_server(&mut self) -> Result<()> {
        let server = self.setup.start().await?;
        self.longest_start = self.longest_start.max(server.start);
        self.watch.process.store(server.id(), Ordering::Relaxed);
        self.state.set_address(&server.address);
        self.server = Some(server);
        Ok(())
    }

    /// Kills the server (SIGKILL) and restarts it on the same data.
    async fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("the server is not running")?;
        self.state.count_kill();
        server.kill()?;
        self.kills += 1;
        self.start_server().await
    }

    /// Lets the load run until this time after its start, with occasional kills and a status line each minute.
    async fn supervise(&mut self, until: Duration, kill_every: u64) -> Result<()> {
        let mut next_kill = self.next_kill(kill_every);
        let mut exits = 0;
        while self.begun.elapsed() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Some(status) = self.server.as_mut().context("the server is not running")?.ended()? {
                self.state.count_kill();
                self.state.fail(format!("the server exited by itself with {status}"));
                exits += 1;
                if exits > EXITS_MAX {
                    bail!("the server exited by itself {exits} times");
                }
                self.start_server().await?;
            }
            if next_kill.is_some_and(|at| self.begun.elapsed() >= at) {
                self.kill().await?;
                next_kill = self.next_kill(kill_every);
            }
            if self.begun.elapsed() >= Duration::from_secs(60 * (self.lines + 1)) {
                self.lines += 1;
                self.print_line()?;
            }
        }
        Ok(())
    }

    /// Between half and one and a half times `every`.
    fn next_kill(&mut self, every: u64) -> Option<Duration> {
        let pause = every * 500 + self.random.below((every * 1000).max(1));
        (every > 0).then(|| self.begun.elapsed() + Duration::from_millis(pause))
    }

    fn print_line(&self) -> Result<()> {
        let (requests, failures) = {
            let observed = self.state.observations();
            (observed.requests.values().sum::<u64>(), observed.failure_count)
        };
        let now = watch::line(&self.watch.samples())?;
        let (minutes, kills) = (self.lines, self.kills);
        writeln!(stdout(), "{minutes} min: {requests} requests, {kills} kills, {failures} failures; {now}")?;
        Ok(())
    }

    /// Pauses all clients that could change data, and compares.
    async fn pause_and_compare(&self, when: &str) {
        let closed = self.state.gate.write().await;
        compare::compare(&self.state, when).await;
        drop(closed);
    }

    /// Ends the load after all sent requests have responses.
    async fn end(&self, clients: &mut JoinSet<()>) {
        self.state.stop.store(true, Ordering::Relaxed);
        // Writers return their batches to the model when they have a response; slow clients need not finish.
        let closed = tokio::time::timeout(END_MAX, self.state.gate.write()).await;
        if closed.is_err() {
            self.state.fail(format!("requests had no response within {} s", END_MAX.as_secs()));
        }
        drop(closed);
        clients.abort_all();
        while let Some(ended) = clients.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                self.state.fail(format!("a client of the soak test panicked: {error}"));
            }
        }
    }

    async fn terminate(&mut self) -> Result<()> {
        let server = self.server.take().context("the server is not running")?;
        let stop = server.terminate().await?;
        self.stop = self.stop.max(Some(stop));
        Ok(())
    }

    /// Reports all observations and measurements.
    fn report(&self, run: &mut Run) -> Result<()> {
        let observed = self.state.observations();
        for ((kind, status), count) in &observed.requests {
            run.add(Measurement::info("requests", *kind, *count as f64, status));
        }
        for (kind, time) in &observed.longest {
            run.add(Measurement::info("longest response time", *kind, time.as_secs_f64(), "s"));
        }
        for ((kind, status, problem), count) in &observed.server_errors {
            run.add(Measurement::info(
                "server errors",
                format!("{kind}: {problem}"),
                *count as f64,
                &status.to_string(),
            ));
        }
        let samples = self.watch.samples();
        let third = samples.len() / 3;
        for (group, samples) in [("first third", &samples[..third]), ("last third", &samples[samples.len() - third..])]
        {
            for (name, metric) in METRICS {
                for (unit, value) in
                    ["min", "median", "max"].into_iter().zip(watch::spread(samples, metric).unwrap_or_default())
                {
                    run.add(Measurement::info(group, name, value, unit));
                }
            }
        }
        run.add(Measurement::info("server", "kills", self.kills as f64, "times"));
        run.add(Measurement::info("server", "longest start", self.longest_start.as_secs_f64(), "s"));
        if let Some(stop) = self.stop {
            run.add(Measurement::info("server", "longest stop", stop.as_secs_f64(), "s"));
        }
        let (panics, errors) = process::logged_errors(&self.setup.log)?;
        run.add(Measurement::info("server", "errors in its log", errors.len() as f64, "times"));
        errors.iter().take(10).for_each(|error| run.remark(format!("log: {error}")));
        run.remark(format!("seed {}", self.state.seed));
        if panics > 0 {
            run.fail(format!("the server panicked {panics} times"));
        }
        observed.failures.iter().for_each(|failure| run.fail(failure));
        let unlisted = observed.failure_count - observed.failures.len() as u64;
        if unlisted > 0 {
            run.fail(format!("and {unlisted} more failures"));
        }
        Ok(())
    }
}
