//! The command line.
//!
//! Every flag has an environment variable (`ARGUS_` and the flag's name in
//! capitals) and a key in the config file (`--config`). A flag overrides a
//! variable, and a variable overrides the file. Exit codes: 0 done, 1 failed
//! (the reason is on standard error), 2 usage.

pub mod analyze;
pub mod ask;
mod audit;
mod backup;
mod catalog;
pub mod check;
mod client;
mod cluster;
pub mod config;
mod diagnose;
pub mod explain;
mod file_body;
pub mod interval;
pub mod maintain;
pub mod manual;
#[cfg(feature = "mcp")]
mod mcp;
mod prompt;
pub mod recount;
pub mod render;
mod resumable;
pub mod serve;
mod sources;
pub mod sql;
mod tail;
pub mod terminal;
mod token;
pub mod upload;
mod upload_client;
mod upload_state;
mod watch;

use std::ffi::OsString;
use std::io::{Write, stderr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};
use argus_dataflow::RuleSet;
use argus_dataflow::rules::DEFAULT_RULES;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use url::Url;

use crate::allocator;
use crate::assistant::model::ModelConfig;
use crate::assistant::{AssistantConfig, Prices};
use crate::cli::ask::{CodesArgs, CompareArgs, ReportArgs};
use crate::cli::audit::AuditArgs;
use crate::cli::backup::{BackupArgs, RestoreArgs};
use crate::cli::catalog::CatalogArgs;
use crate::cli::cluster::ClusterArgs;
use crate::cli::diagnose::DiagnoseArgs;
use crate::cli::manual::{CompletionsArgs, ManArgs};
#[cfg(feature = "mcp")]
use crate::cli::mcp::McpArgs;
use crate::cli::tail::TailArgs;
use crate::cli::token::TokenArgs;
use crate::cli::upload::UploadArgs;
use crate::metadata::{InvalidLocation, Location};
use crate::telemetry::LogFormat;

/// Count error codes in a fleet's update logs, and query the results.
#[derive(Debug, Parser)]
#[command(name = "argus", version, about)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// A TOML file with defaults for the flags; its keys are the names of flags.
    #[arg(long, global = true, env = "ARGUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service in one process.
    #[command(
        after_help = "Examples:\n  argus serve --data ./argus-data\n  argus serve --listen 127.0.0.1:0 --pg 127.0.0.1:5432"
    )]
    Serve(Box<ServeArgs>),
    /// Count the error codes in files, folders or standard input (-), without a server.
    #[command(
        after_help = "Examples:\n  argus analyze logs/\n  journalctl | argus analyze -\n  argus analyze logs/ --rules +acme.toml --format json"
    )]
    Analyze(AnalyzeArgs),
    /// Say what is known of the error codes in files, without a server.
    #[command(after_help = "Examples:\n  argus diagnose logs/\n  argus diagnose ota.log --format json")]
    Diagnose(DiagnoseArgs),
    /// Change what a server knows of codes.
    Catalog(CatalogArgs),
    /// Create, list and revoke API tokens. Commands that ask a server send the token in the variable ARGUS_TOKEN.
    #[command(
        after_help = "Examples:\n  argus token create --scope admin --data ./argus-data\n  ARGUS_TOKEN=… argus token create --scope upload --vin WVWZZZ1JZXW000001 --server https://argus.example\n  ARGUS_TOKEN=… argus token list --server https://argus.example"
    )]
    Token(TokenArgs),
    /// Verify the audit log of a data directory.
    Audit(AuditArgs),
    /// Run SQL queries on a running server or a data directory.
    #[command(
        after_help = "Examples:\n  argus sql --server http://127.0.0.1:8080 \"SHOW TABLES\"\n  argus sql --data ./argus-data \"SELECT code, sum(count) FROM error_counts GROUP BY code\""
    )]
    Sql(SqlArgs),
    /// Upload files to a server as one batch, and print its report.
    #[command(
        after_help = "Examples:\n  argus upload --vehicle veh-1 --vin WVWZZZ1JZXW000001 --firmware 7.2.1 logs/\n  argus upload --batch 01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e logs/ --fail-on critical\n  argus upload --vehicle veh-1 --vin WVWZZZ1JZXW000001 --watch /srv/inbox\n\nExit codes: 0 done, 1 failed, 2 usage, 3 a code has the severity of --fail-on or a higher one."
    )]
    Upload(UploadArgs),
    /// Print the report of a batch.
    #[command(
        after_help = "Examples:\n  argus report 01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e\n  argus report BATCH --top 10 --format csv"
    )]
    Report(ReportArgs),
    /// Print the codes of the fleet.
    #[command(
        after_help = "Examples:\n  argus codes --group-by platform\n  argus codes --firmware 7.2.1 --since 2026-03-01T00:00:00Z"
    )]
    Codes(CodesArgs),
    /// Compare the codes of two firmwares.
    #[command(after_help = "Examples:\n  argus compare 7.2.1 7.2.0\n  argus compare 7.2.1 7.2.0 --format csv")]
    Compare(CompareArgs),
    /// Print the lines of a batch as they arrive, with their codes.
    #[command(
        after_help = "Examples:\n  argus tail 01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e\n  argus tail BATCH -n 100 --file ota.log --codes-only"
    )]
    Tail(TailArgs),
    /// Let an assistant ask a server, over the Model Context Protocol on standard input and output.
    #[cfg(feature = "mcp")]
    #[command(after_help = "Examples:\n  argus mcp --server http://127.0.0.1:8080")]
    Mcp(McpArgs),
    /// Try every configured server, and print what works; the flags are those of serve.
    #[command(
        after_help = "Examples:\n  argus check --metadata postgres://argus@db/argus --store s3://bucket/argus --kafka broker:9092\n  argus check --server http://127.0.0.1:8080"
    )]
    Check(CheckArgs),
    /// Compact the tables and erase deleted data, in a data directory that no server has open.
    #[command(after_help = "Examples:\n  argus maintain --data ./argus-data --retention 30d")]
    Maintain(MaintainArgs),
    /// Copy all data at one epoch, also of a server that runs.
    ///
    /// A backup has the metadata, the tables, the raw files and the audit log. What is erased later stays in it.
    #[command(
        after_help = "Examples:\n  argus backup /srv/backup/2026-03-01 --data ./argus-data\n  argus backup s3://bucket/argus/2026-03-01 --data ./argus-data"
    )]
    Backup(BackupArgs),
    /// Make a data directory of a backup; each file is verified.
    #[command(after_help = "Examples:\n  argus restore /srv/backup/2026-03-01 --data ./restored")]
    Restore(RestoreArgs),
    /// Count all stored files again with the current rules and rebuild the tables, in a data directory that no server
    /// has open.
    Recount(RecountArgs),
    /// Print the completions of a shell.
    #[command(
        after_help = "Examples:\n  argus completions bash > /etc/bash_completion.d/argus\n  argus completions zsh > ~/.zfunc/_argus"
    )]
    Completions(CompletionsArgs),
    /// Write the manual pages of all commands into a folder.
    #[command(after_help = "Examples:\n  argus man /usr/local/share/man/man1")]
    Man(ManArgs),
}

/// Flags of `argus serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The address to listen on; port 0 picks a free one.
    #[arg(long, env = "ARGUS_LISTEN", default_value = "127.0.0.1:8080", value_name = "HOST:PORT", value_parser = address)]
    pub listen: String,
    /// A name under which browsers reach the server, for example behind a proxy; may be repeated. A server on a loopback
    /// address is otherwise only known by names without a dot, so that other sites cannot read it by a name of theirs.
    #[arg(long, env = "ARGUS_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// Serve everybody who reaches an address that is not loopback, without a token.
    #[arg(long, env = "ARGUS_INSECURE")]
    pub insecure: bool,
    /// Where data is stored.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// Also serve SQL over the PostgreSQL protocol, on this address; port 0 picks a free one.
    #[arg(long, env = "ARGUS_PG", value_name = "HOST:PORT", value_parser = address)]
    pub pg: Option<String>,
    /// Also serve SQL over Arrow Flight SQL, on this address; port 0 picks a free one.
    #[arg(long, env = "ARGUS_FLIGHT", value_name = "HOST:PORT", value_parser = address)]
    pub flight: Option<String>,
    /// Also make a batch of each object that appears here: a folder, or s3://BUCKET/PREFIX with the AWS_… variables. Its
    /// path (vin=VIN/…) or its metadata name the vehicle.
    #[arg(long, env = "ARGUS_INBOX", value_name = "URL")]
    pub inbox: Option<String>,
    /// Also receive syslog over TCP, on this address: RFC 5424 and 3164, messages counted or ended by line feeds.
    #[arg(long, env = "ARGUS_SYSLOG", value_name = "HOST:PORT", value_parser = address)]
    pub syslog: Option<String>,
    /// Also receive syslog over TLS (RFC 5425), on this address.
    #[arg(long, env = "ARGUS_SYSLOG_TLS", value_name = "HOST:PORT", value_parser = address, requires = "tls_cert")]
    pub syslog_tls: Option<String>,
    /// Serve HTTP over TLS with this certificate, followed by those that sign it, in PEM. It is read again when it changes.
    #[arg(long, env = "ARGUS_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM.
    #[arg(long, env = "ARGUS_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// How long records of the audit log are kept, for example 90d; 0 means for ever.
    #[arg(long, env = "ARGUS_AUDIT_KEEP", default_value = "365d", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub audit_keep: Duration,
    /// Requests of each token in a second, and twice as many after a pause; more are answered with 429.
    #[arg(long, env = "ARGUS_REQUESTS_PER_TOKEN", default_value = "1000", value_name = "COUNT")]
    pub requests_per_token: NonZeroU32,
    /// The other servers.
    #[command(flatten)]
    pub servers: ServersArgs,
    /// The other processes.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The language model.
    #[command(flatten)]
    pub llm: LlmArgs,
    /// The format of the log on standard error.
    #[arg(long, env = "ARGUS_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Send traces to this OpenTelemetry collector, by OTLP over HTTP, for example http://127.0.0.1:4318.
    #[arg(long, env = "ARGUS_OTLP", value_name = "URL")]
    pub otlp: Option<Url>,
    /// The interval of maintenance (compaction, erasure of deleted data), for example 30s or 1h; 0 means never.
    #[arg(long, env = "ARGUS_MAINTAIN_EVERY", default_value = "10m", value_name = "DURATION", value_parser = interval::parse)]
    pub maintain_every: Duration,
    /// How long past epochs can be queried.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// How files are counted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// A language model that explains findings.
#[derive(Debug, Args)]
pub struct LlmArgs {
    /// Let a language model explain what stands out, behind an API like OpenAI's, for example http://127.0.0.1:11434/v1. The
    /// key is read from the variable ARGUS_LLM_KEY. The model is sent findings and some lines, without the vehicle's identity.
    #[arg(long, env = "ARGUS_LLM_URL", value_name = "URL", requires = "llm_model")]
    pub llm_url: Option<Url>,
    /// The name of the model.
    #[arg(long, env = "ARGUS_LLM_MODEL", value_name = "NAME", requires = "llm_url")]
    pub llm_model: Option<String>,
    /// How long an explanation may take.
    #[arg(long, env = "ARGUS_LLM_TIMEOUT", default_value = "2m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub llm_timeout: Duration,
    /// Calls at once.
    #[arg(long, env = "ARGUS_LLM_CALLS", default_value = "2", value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub llm_calls: u16,
    /// Tokens of one explanation, read and written; findings that do not fit are left out.
    #[arg(long, env = "ARGUS_LLM_TOKENS", default_value = "8000", value_name = "COUNT", value_parser = clap::value_parser!(u32).range(3000..=1_000_000))]
    pub llm_tokens: u32,
    /// Tokens of a day (UTC); beyond, nothing is explained.
    #[arg(long, env = "ARGUS_LLM_TOKENS_PER_DAY", default_value = "1000000", value_name = "COUNT")]
    pub llm_tokens_per_day: u64,
    /// What a million tokens cost that the model reads, and that it writes, for example 0.15,0.60.
    #[arg(long, env = "ARGUS_LLM_PRICES", value_name = "READ,WRITTEN", value_parser = prices)]
    pub llm_prices: Option<Prices>,
}

impl LlmArgs {
    /// The configuration of the assistant, if there is a model.
    pub fn assistant(&self) -> Option<AssistantConfig> {
        let (url, model) = (self.llm_url.clone()?, self.llm_model.clone()?);
        let key = std::env::var("ARGUS_LLM_KEY").ok().filter(|key| !key.is_empty());
        Some(AssistantConfig {
            // A server may think for a while before it writes.
            model: ModelConfig { url, model, key, silence_max: self.llm_timeout },
            time_max: self.llm_timeout,
            calls_max: self.llm_calls.into(),
            tokens_max: self.llm_tokens as usize,
            tokens_per_day: self.llm_tokens_per_day,
            prices: self.llm_prices,
        })
    }
}

fn prices(text: &str) -> Result<Prices, String> {
    let parsed = text.split_once(',').and_then(|(prompt, completion)| {
        let price = |text: &str| text.trim().parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0);
        Some(Prices { prompt: price(prompt)?, completion: price(completion)? })
    });
    parsed.ok_or_else(|| "write two numbers, for example 0.15,0.60".to_owned())
}

/// Flags of `argus check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Only ask this running server whether it is ready.
    #[arg(long, env = "ARGUS_SERVER", value_name = "URL")]
    pub server: Option<Url>,
    /// Where data is stored.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// The other servers.
    #[command(flatten)]
    pub servers: ServersArgs,
}

/// Flags of `argus maintain`.
#[derive(Debug, Args)]
pub struct MaintainArgs {
    /// Where data is stored.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// How long past epochs can be queried.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// How to count the files that a crash left uncounted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Flags of `argus recount`.
#[derive(Debug, Args)]
pub struct RecountArgs {
    /// The data directory, which must have the metadata and the files too.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// How files are counted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Where the service stores its data.
#[derive(Debug, Args)]
pub struct StorageArgs {
    /// The data directory.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// The database of the metadata: sqlite:PATH, or postgres://USER:PASSWORD@HOST:PORT/DATABASE; the default is a file in
    /// the data directory.
    #[arg(long, env = "ARGUS_METADATA", hide_env_values = true, value_name = "URL")]
    pub metadata: Option<String>,
    /// Where the raw files and the tables are stored: a directory, or s3://BUCKET/PREFIX with the AWS_… variables; the
    /// default is the data directory.
    #[arg(long, env = "ARGUS_STORE", value_name = "URL")]
    pub store: Option<String>,
}

impl StorageArgs {
    /// The database of the metadata, if it is not in the data directory. The command line parser would print a URL that
    /// is invalid, with its password.
    pub fn location(&self) -> Result<Option<Location>, InvalidLocation> {
        self.metadata.as_deref().map(str::parse).transpose()
    }
}

/// Servers beside the storage.
#[derive(Debug, Args)]
pub struct ServersArgs {
    /// Publish the events of batches to these Kafka brokers, in the topic argus.events.
    #[arg(long, env = "ARGUS_KAFKA", value_name = "HOST:PORT,…")]
    pub kafka: Option<String>,
    /// Also count the lines in this topic of Kafka.
    #[arg(long, env = "ARGUS_LINES_TOPIC", value_name = "NAME", requires = "kafka")]
    pub lines_topic: Option<String>,
    /// Also cache answers in this Redis server, for other processes and across restarts.
    #[arg(long, env = "ARGUS_REDIS", hide_env_values = true, value_name = "URL")]
    pub redis: Option<String>,
}

/// How long past epochs can be queried.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// How long past epochs can be queried, for example 12h or 7d.
    #[arg(long, env = "ARGUS_RETENTION", default_value = "7d", value_name = "DURATION")]
    pub retention: humantime::Duration,
}

/// Flags of `argus analyze`.
#[derive(Debug, Args)]
pub struct AnalyzeArgs {
    /// Files, folders, or - for standard input.
    #[arg(required_unless_present = "explain", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Show how each pattern is searched for, which patterns are slow, and why.
    #[arg(long, env = "ARGUS_EXPLAIN")]
    pub explain: bool,
    /// The format of the report; the default is table on a terminal, otherwise json.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<ReportFormat>,
    /// Also write the tables to this directory, as Parquet files.
    #[arg(long, env = "ARGUS_PARQUET", value_name = "DIR")]
    pub parquet: Option<PathBuf>,
    /// How files are counted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Flags of `argus sql`.
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// The query; if omitted, queries are read from a prompt or from standard input.
    pub query: Option<String>,
    /// The URL of a running server.
    #[arg(long, env = "ARGUS_SERVER", value_name = "URL")]
    pub server: Option<Url>,
    /// The data directory to read if --server is not given; it is never changed.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    pub data: PathBuf,
    /// The store to read instead of --data, for example s3://BUCKET/PREFIX with the AWS_… variables; it is never changed.
    #[arg(long, env = "ARGUS_STORE", value_name = "URL", conflicts_with = "server")]
    pub store: Option<String>,
    /// Query the tables as they were at this epoch.
    #[arg(long, env = "ARGUS_AS_OF", value_name = "EPOCH")]
    pub as_of: Option<u64>,
    /// The format of the rows; the default is table on a terminal, otherwise csv.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<RowsFormat>,
}

/// How files are counted.
#[derive(Debug, Args)]
pub struct CountingArgs {
    /// A rules file that replaces the built-in rules; +FILE puts its rules before the built-in rules.
    #[arg(long, env = "ARGUS_RULES", value_name = "[+]FILE")]
    pub rules: Option<PathBuf>,
    /// The number of Timely worker threads; the default is the number of cores.
    #[arg(long, env = "ARGUS_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Bytes in a block of lines.
    #[arg(long, env = "ARGUS_BLOCK_BYTES", default_value_t = argus_dataflow::BLOCK_BYTES_DEFAULT as u32, hide = true,
          value_parser = clap::value_parser!(u32).range(1..=argus_dataflow::LINE_BYTES_MAX as i64))]
    pub block_bytes: u32,
}

impl CountingArgs {
    /// The number of worker threads to start.
    pub fn workers(&self) -> usize {
        self.workers.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// The rules to count with.
    pub fn rules(&self) -> Result<RuleSet> {
        let Some(path) = &self.rules else { return Ok(RuleSet::built_in()?) };
        let text = path.to_string_lossy();
        let (file, before_built_in) = match text.strip_prefix('+') {
            Some(rest) => (PathBuf::from(rest), true),
            None => (path.clone(), false),
        };
        let rules =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read the rules file {}", file.display()))?;
        let files = if before_built_in { vec![rules.as_str(), DEFAULT_RULES] } else { vec![rules.as_str()] };
        RuleSet::parse(&files).with_context(|| format!("rules file {}", file.display()))
    }
}

/// The format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ReportFormat {
    Table,
    Json,
    Csv,
}

/// The format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum RowsFormat {
    Table,
    Json,
    Csv,
    Arrow,
    Parquet,
}

/// Runs the command line; returns the exit code of the process.
pub fn main() -> ExitCode {
    allocator::set();
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // A broken pipe does not change the exit code.
            let _ = print(&error);
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Diagnose(args) => diagnose::run(&args),
        Command::Catalog(args) => catalog::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Sql(args) => sql::run(&args),
        Command::Upload(args) => match &args.watch {
            Some(folder) => watch::run(&args, folder),
            None => upload::run(&args),
        },
        Command::Report(args) => ask::report(&args),
        Command::Codes(args) => ask::codes(&args),
        Command::Compare(args) => ask::compare(&args),
        Command::Tail(args) => tail::run(&args),
        #[cfg(feature = "mcp")]
        Command::Mcp(args) => mcp::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::Check(args) => check::run(&args),
        Command::Maintain(args) => maintain::run(&args),
        Command::Recount(args) => recount::run(&args),
    };
    match done {
        Ok(code) => code,
        // The reader of the output has closed the pipe.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "argus: {}", terminal::lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Prints the help, or the usage error. The arguments in it may contain escape sequences.
fn print(error: &clap::Error) -> std::io::Result<()> {
    match error.use_stderr() {
        true => write!(stderr(), "{}", terminal::lines(&error.render().to_string())),
        false => error.print(),
    }
}

/// Parses arguments, with the defaults of the config file if there is one.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = config::with_defaults(Cli::command(), &arguments)?;
    let cli = Cli::from_arg_matches(&command.try_get_matches_from_mut(arguments)?)?;
    let storage = match &cli.command {
        Command::Serve(serve) => Some(&serve.storage),
        Command::Check(CheckArgs { storage, .. })
        | Command::Recount(RecountArgs { storage, .. })
        | Command::Maintain(MaintainArgs { storage, .. }) => Some(storage),
        _ => None,
    };
    match storage.map_or(Ok(None), StorageArgs::location) {
        Ok(_) => Ok(cli),
        Err(error) => Err(command.error(ErrorKind::ValueValidation, format!("--metadata: {error}"))),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Parses `HOST:PORT`. Only the port is checked here; the host is resolved later.
fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err("must be HOST:PORT, for example 127.0.0.1:8080".to_owned()),
    }
}
