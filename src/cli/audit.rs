//! `argus audit`: verifies the audit log of a data directory.

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::audit;
use crate::audit::chain::verify;

/// Flags of `argus audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

/// The subcommands of `argus audit`.
#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Verify that no record of the audit log was changed, removed or inserted, and print the hash of the last one.
    ///
    /// Keep that hash elsewhere: with --contains, it proves later that the log up to it is still the same. Exit codes: 0 the
    /// log is whole, 1 it is not.
    #[command(
        after_help = "Examples:\n  argus audit verify --data ./argus-data\n  argus audit verify --data ./argus-data --contains 5f0c…"
    )]
    Verify(VerifyArgs),
}

/// Flags of `argus audit verify`.
#[derive(Debug, Args)]
struct VerifyArgs {
    /// The data directory. If a server is writing a record at that moment, repeat the command.
    #[arg(long, env = "ARGUS_DATA", default_value = "./argus-data", value_name = "DIR")]
    data: PathBuf,
    /// Also look for the record with this hash, which an earlier verification printed.
    #[arg(long, value_name = "HASH")]
    contains: Option<String>,
}

/// Runs `argus audit`.
pub fn run(args: &AuditArgs) -> Result<ExitCode> {
    let AuditCommand::Verify(args) = &args.command;
    let verified = verify(&audit::folder(&args.data), args.contains.as_deref())?;
    let last = verified.first + verified.records.saturating_sub(1);
    writeln!(
        stdout(),
        "{} records, from {} to {last}; the hash of the last is {}",
        verified.records,
        verified.first,
        verified.last_hash
    )?;
    match (&args.contains, verified.contains) {
        (Some(hash), false) => {
            writeln!(stderr(), "no record has the hash {hash}: the log was cut off, or is another one")?;
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
