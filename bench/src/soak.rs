//! Hours of mixed load, with kills: nothing is miscounted, and nothing grows that may not.
//!
//! ```text
//!  writers ──► model          supervisor: start, kill -9, start again …
//!     │  readers, faults          │        watch: a sample every 10 s
//!     ▼     ▼                     ▼          ▼
//!  the server ──► answers      process ──► bounds
//! ```
//!
//! - [`model`]: what must be counted, and what may have happened; [`texts`]: what is sent;
//! - [`load`]: clients that change batches; [`readers`]: clients that read; [`faults`]: bad requests and bad clients;
//! - [`requests`]: every answer is counted and judged; [`state`]: what all of these share;
//! - [`process`]: the server, started and ended; [`watch`]: what it takes; [`bounds`]: what it may take;
//! - [`compare`]: everything alive, held to the model.

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
use crate::soak::watch::{Disk, FIGURES, Watch};

/// A server that ends by itself is started again so often.
const DEATHS_MAX: u64 = 5;
/// Clients still have an answer to come when the load ends; it comes within this time.
const END_MAX: Duration = Duration::from_secs(240);

/// Flags of `argus-bench soak`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// For how long clients send requests.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Names the random choices of the run; without it, one is chosen and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// The server is killed about so often, in seconds; 0 for never.
    #[arg(long, default_value_t = 180)]
    kill_every: u64,
    /// The server's --maintain-every.
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
    /// Batches that are alive, at most: the oldest are deleted.
    #[arg(long, default_value_t = 400)]
    batches: u64,
    /// MiB of text that are alive, at most.
    #[arg(long, default_value_t = 512)]
    text_mib: u64,
    /// Different codes of one rule that the server counts by name for each upload.
    #[arg(long, default_value_t = 500)]
    codes_per_rule: usize,
    /// The argus to run; without it, the one that was built beside this program.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Timely workers of the server.
    #[arg(long)]
    workers: Option<u16>,
    /// Everything alive is compared with what it should be about so often, in minutes, and at the end.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    compare_every: u64,
    /// Keep the data directory and the server's log in this new folder; without it, they are kept only after a failure.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Soaks, and reports every difference and every bound that was exceeded as a failure.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let seed =
        args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ chrono::Utc::now().timestamp().unsigned_abs());
    writeln!(stdout(), "soak of {} minutes, seed {seed}", args.minutes)?;
    let mut soak = Soak::start(args, folder, seed).await?;
    let soaked = soak.run(args).await;
    soak.state.stop.store(true, Ordering::Relaxed);
    soak.report(run)?;
    let has_failed = soaked.is_err() || soak.state.seen().failure_count > 0;
    if has_failed && args.keep.is_none() {
        run.remark(format!("data and log are in {}", temporary.keep().display()));
    }
    soaked
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
            bail!("{} is there already; name a new folder", data.display());
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
        loop {
            minutes = args.minutes.min(minutes + args.compare_every);
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
            clients.spawn(faults::again_and_again(state(), 100 + number, faults::slow_upload));
        }
        for number in 0..faults::SILENT {
            clients.spawn(faults::again_and_again(state(), 200 + number, faults::silent));
        }
        for number in 0..faults::NEVER_READING {
            clients.spawn(faults::again_and_again(state(), 300 + number, faults::never_reading));
        }
        for number in 0..faults::FOLLOWERS {
            clients.spawn(faults::again_and_again(state(), 400 + number, faults::follow));
        }
        clients.spawn(Arc::clone(&self.watch).run(state()));
        clients
    }

    async fn start_server(&mut self) -> Result<()> {
        let server = self.setup.start().await?;
        self.longest_start = self.longest_start.max(server.start);
        self.watch.process.store(server.id(), Ordering::Relaxed);
        self.state.listens(&server.address);
        self.server = Some(server);
        Ok(())
    }

    /// SIGKILL, and another start on the same data.
    async fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("the server runs")?;
        self.state.is_killed();
        server.kill()?;
        self.kills += 1;
        self.start_server().await
    }

    /// Lets the load go on until so long after its begin, with kills now and then, and says each minute how it stands.
    async fn supervise(&mut self, until: Duration, kill_every: u64) -> Result<()> {
        let mut next_kill = self.next_kill(kill_every);
        let mut deaths = 0;
        while self.begun.elapsed() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Some(status) = self.server.as_mut().context("the server runs")?.ended()? {
                self.state.is_killed();
                self.state.fail(format!("the server ended by itself with {status}"));
                deaths += 1;
                if deaths > DEATHS_MAX {
                    bail!("the server ended by itself {deaths} times");
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

    /// Half the time to one and a half of it.
    fn next_kill(&mut self, every: u64) -> Option<Duration> {
        let pause = every * 500 + self.random.below((every * 1000).max(1));
        (every > 0).then(|| self.begun.elapsed() + Duration::from_millis(pause))
    }

    fn print_line(&self) -> Result<()> {
        let (requests, failures) = {
            let seen = self.state.seen();
            (seen.requests.values().sum::<u64>(), seen.failure_count)
        };
        let now = watch::line(&self.watch.samples())?;
        let (minutes, kills) = (self.lines, self.kills);
        writeln!(stdout(), "{minutes} min: {requests} requests, {kills} kills, {failures} failures; {now}")?;
        Ok(())
    }

    /// Holds all clients back that could change something, and compares.
    async fn pause_and_compare(&self, when: &str) {
        let closed = self.state.gate.write().await;
        compare::compare(&self.state, when).await;
        drop(closed);
    }

    /// Ends the load: what was sent is still answered.
    async fn end(&self, clients: &mut JoinSet<()>) {
        self.state.stop.store(true, Ordering::Relaxed);
        // Writers hold their batches in hand until they have an answer; slow clients need not be waited for.
        let closed = tokio::time::timeout(END_MAX, self.state.gate.write()).await;
        if closed.is_err() {
            self.state.fail(format!("requests were not answered within {} s", END_MAX.as_secs()));
        }
        drop(closed);
        clients.abort_all();
        while let Some(ended) = clients.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                self.state.fail(format!("a client of the soak failed: {error}"));
            }
        }
    }

    async fn terminate(&mut self) -> Result<()> {
        let server = self.server.take().context("the server runs")?;
        let stop = server.terminate().await?;
        self.stop = self.stop.max(Some(stop));
        Ok(())
    }

    /// Everything that was seen and measured.
    fn report(&self, run: &mut Run) -> Result<()> {
        let seen = self.state.seen();
        for ((kind, status), count) in &seen.requests {
            run.add(Measurement::told("requests", *kind, *count as f64, status));
        }
        for (kind, time) in &seen.longest {
            run.add(Measurement::told("longest answer", *kind, time.as_secs_f64(), "s"));
        }
        for ((kind, status, problem), count) in &seen.server_errors {
            run.add(Measurement::told(
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
            for (name, figure) in FIGURES {
                for (unit, value) in
                    ["min", "median", "max"].into_iter().zip(watch::spread(samples, figure).unwrap_or_default())
                {
                    run.add(Measurement::told(group, name, value, unit));
                }
            }
        }
        run.add(Measurement::told("server", "kills", self.kills as f64, "times"));
        run.add(Measurement::told("server", "longest start", self.longest_start.as_secs_f64(), "s"));
        if let Some(stop) = self.stop {
            run.add(Measurement::told("server", "longest stop", stop.as_secs_f64(), "s"));
        }
        let (panics, errors) = process::complaints(&self.setup.log)?;
        run.add(Measurement::told("server", "errors in its log", errors.len() as f64, "times"));
        errors.iter().take(10).for_each(|error| run.remark(format!("log: {error}")));
        run.remark(format!("seed {}", self.state.seed));
        if panics > 0 {
            run.fail(format!("the server panicked {panics} times"));
        }
        seen.failures.iter().for_each(|failure| run.fail(failure));
        let unlisted = seen.failure_count - seen.failures.len() as u64;
        if unlisted > 0 {
            run.fail(format!("and {unlisted} more"));
        }
        Ok(())
    }
}
