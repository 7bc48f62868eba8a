//! The command line.
//!
//! Every flag is also a variable (`ARGUS_` and its name in capitals) and a key
//! of the file that `--config` names. A flag beats a variable beats the file.
//! Exit codes: 0 done, 1 failed with the reason on standard error, 2 usage.

use std::ffi::OsString;
use std::io::{ErrorKind, Write, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};
use argus_dataflow::RuleSet;
use argus_dataflow::rules::DEFAULT_RULES;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use url::Url;

use crate::{allocator, analyze, config, every, maintain, recount, serve, sql, terminal};

/// Fleet update logs become answers.
#[derive(Debug, Parser)]
#[command(name = "argus", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// A TOML file with defaults for the flags, by their names.
    #[arg(long, global = true, env = "ARGUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What Argus does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole service in one process.
    #[command(
        after_help = "Examples:\n  argus serve --data ./argus-data\n  argus serve --listen 127.0.0.1:0 --pg 127.0.0.1:5432"
    )]
    Serve(ServeArgs),
    /// Count the error codes in files, folders or standard input (-), without a server.
    #[command(
        after_help = "Examples:\n  argus analyze logs/\n  journalctl | argus analyze -\n  argus analyze logs/ --rules +acme.toml --format json"
    )]
    Analyze(AnalyzeArgs),
    /// Ask questions in SQL, of a running server or a data directory.
    #[command(
        after_help = "Examples:\n  argus sql --server http://127.0.0.1:8080 \"SHOW TABLES\"\n  argus sql --data ./argus-data \"SELECT code, sum(count) FROM error_counts GROUP BY code\""
    )]
    Sql(SqlArgs),
    /// Compact, erase and tidy a data directory that no server has open.
    #[command(after_help = "Examples:\n  argus maintain --data ./argus-data --retention 30d")]
    Maintain(MaintainArgs),
    /// Count all stored files again under today's rules and build the tables anew, on a data directory that no server
    /// has open.
    Recount(RecountArgs),
}

/// Flags of `argus serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The address to listen on; port 0 picks a free one.
    #[arg(long, env = "ARGUS_LISTEN", default_value = "127.0.0.1:8080", value_name = "HOST:PORT", value_parser = address)]
    pub listen: String,
    /// The data directory.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Answer SQL over the PostgreSQL protocol there too; port 0 picks a free one.
    #[arg(long, env = "ARGUS_PG", value_name = "HOST:PORT", value_parser = address)]
    pub pg: Option<String>,
    /// Answer SQL over Arrow Flight SQL there too; port 0 picks a free one.
    #[arg(long, env = "ARGUS_FLIGHT", value_name = "HOST:PORT", value_parser = address)]
    pub flight: Option<String>,
    /// Also keep answers in Redis, for other processes and the next start.
    #[arg(long, env = "ARGUS_REDIS", value_name = "URL")]
    pub redis: Option<String>,
    /// How often the tables are compacted, and what was deleted is erased, as in 30s or 1h; 0 means never.
    #[arg(long, env = "ARGUS_MAINTAIN_EVERY", default_value = "10m", value_name = "DURATION", value_parser = every::parse)]
    pub maintain_every: Duration,
    /// For how long the past can be asked for.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// What is counted and how.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Flags of `argus maintain`.
#[derive(Debug, Args)]
pub struct MaintainArgs {
    /// The data directory.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// For how long the past can be asked for.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// What is counted and how, for what a crash left to be counted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Flags of `argus recount`.
#[derive(Debug, Args)]
pub struct RecountArgs {
    /// The data directory.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// What is counted and how.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// For how long the past can be asked for.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// For how long the past can be asked for, as in 12h or 7d.
    #[arg(long, env = "ARGUS_RETENTION", default_value = "7d", value_name = "DURATION")]
    pub retention: humantime::Duration,
}

/// Flags of `argus analyze`.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// Files, folders, or - for standard input.
    #[arg(required_unless_present = "explain", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Say how each rule is searched for, which are slow, and why.
    #[arg(long, env = "ARGUS_EXPLAIN")]
    pub explain: bool,
    /// How the report is printed; a table on a terminal, else JSON.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<ReportFormat>,
    /// Also write the tables there, as Parquet files.
    #[arg(long, env = "ARGUS_PARQUET", value_name = "DIR")]
    pub parquet: Option<PathBuf>,
    /// What is counted and how.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Flags of `argus sql`.
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// The query; without one, a prompt for them, or what comes on standard input.
    pub query: Option<String>,
    /// The running server to ask.
    #[arg(long, env = "ARGUS_SERVER", value_name = "URL")]
    pub server: Option<Url>,
    /// Without a server, the data directory, which is only read.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// The tables as they were at this epoch.
    #[arg(long, env = "ARGUS_AS_OF", value_name = "EPOCH")]
    pub as_of: Option<u64>,
    /// How the rows are printed; a table on a terminal, else CSV.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<RowsFormat>,
}

/// What is counted and how.
#[derive(Debug, Args)]
pub struct CountingArgs {
    /// A rule file instead of the built-in rules; with + before it, its rules before them.
    #[arg(long, env = "ARGUS_RULES", value_name = "[+]FILE")]
    pub rules: Option<PathBuf>,
    /// Timely worker threads; as many as there are cores when not given.
    #[arg(long, env = "ARGUS_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Bytes in a block of lines.
    #[arg(long, env = "ARGUS_BLOCK_BYTES", default_value_t = argus_dataflow::BLOCK_BYTES_DEFAULT as u32, hide = true,
          value_parser = clap::value_parser!(u32).range(1..=argus_dataflow::LINE_BYTES_MAX as i64))]
    pub block_bytes: u32,
}

impl CountingArgs {
    /// The worker threads to start.
    pub fn workers(&self) -> usize {
        self.workers.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// The rules in force.
    pub fn rules(&self) -> Result<RuleSet> {
        let Some(path) = &self.rules else { return Ok(RuleSet::built_in()?) };
        let text = path.to_string_lossy();
        let (file, before_built_in) = match text.strip_prefix('+') {
            Some(rest) => (PathBuf::from(rest), true),
            None => (path.clone(), false),
        };
        let rules =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read the rules in {}", file.display()))?;
        let files = if before_built_in { vec![rules.as_str(), DEFAULT_RULES] } else { vec![rules.as_str()] };
        RuleSet::parse(&files).with_context(|| format!("the rules in {} do not hold", file.display()))
    }
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ReportFormat {
    Table,
    Json,
    Csv,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum RowsFormat {
    Table,
    Json,
    Csv,
    Arrow,
    Parquet,
}

/// Does what the command line says; the process's exit code.
pub fn main() -> ExitCode {
    allocator::set();
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason for another code.
            let _ = print(&error);
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Sql(args) => sql::run(&args),
        Command::Maintain(args) => maintain::run(&args),
        Command::Recount(args) => recount::run(&args),
    };
    match done {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "argus: {}", terminal::lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Prints the help that was asked for, or what is wrong with the arguments, which may be anything.
fn print(error: &clap::Error) -> std::io::Result<()> {
    match error.use_stderr() {
        true => write!(stderr(), "{}", terminal::lines(&error.render().to_string())),
        false => error.print(),
    }
}

/// Parses arguments, with the defaults of the config file where it is named.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = config::with_defaults(Cli::command(), &arguments)?;
    Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// A host and a port, of which only the port can be looked at before it is tried.
fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("an address is HOST:PORT, as in 127.0.0.1:8080".to_owned()),
    }
}
