//! The config file: defaults for flags, with the flags' names as keys.
//!
//! Its values become the defaults of the command line's arguments. So they are
//! validated like arguments, and flags and environment variables override them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Command, Error};
use toml::{Table, Value};

/// Adds the config file's values to the command as defaults, if the arguments
/// or `ARGUS_CONFIG` name a file.
pub fn with_defaults(mut command: Command, arguments: &[OsString]) -> Result<Command, Error> {
    let Some(path) = path(arguments) else { return Ok(command) };
    let fail = |command: &mut Command, reason: String| {
        command.error(ErrorKind::InvalidValue, format!("config file {}: {reason}", path.display()))
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Err(fail(&mut command, error.to_string())),
    };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return Err(fail(&mut command, error.to_string())),
    };
    let mut known = BTreeSet::new();
    command = match with_values(command.clone(), &table, &mut known) {
        Ok(command) => command,
        Err(reason) => return Err(fail(&mut command, reason)),
    };
    match table.keys().find(|key| !known.contains(*key)) {
        Some(unknown) => Err(fail(&mut command, format!("unknown key {unknown:?}; a key is the name of a flag"))),
        None => Ok(command),
    }
}

/// The command and those below it with the values of the table as defaults of their flags. Notes the keys of these flags.
fn with_values(mut command: Command, table: &Table, known: &mut BTreeSet<String>) -> Result<Command, String> {
    let flags = command.get_arguments().filter_map(|argument| Some((argument.get_id().clone(), argument.get_long()?)));
    let flags: Vec<_> = flags.map(|(id, long)| (id, long.to_owned())).collect();
    for (id, long) in flags {
        let Some(value) = table.get(&long).or_else(|| table.get(&long.replace('-', "_"))) else { continue };
        let Some(text) = plain(value) else {
            return Err(format!("{long} must be a string, a number or a boolean"));
        };
        known.extend([long.replace('-', "_"), long]);
        // A default must live as long as the command, which lives as long as the process.
        let text: &'static str = text.leak();
        command = command.mut_arg(id, |argument| argument.default_value(text));
    }
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in names {
        let below =
            command.find_subcommand(&name).cloned().map(|below| with_values(below, table, known)).transpose()?;
        command = command.mut_subcommand(name, |unchanged| below.unwrap_or(unchanged));
    }
    Ok(command)
}

fn path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(|path| PathBuf::from(path.as_ref()));
        }
        if let Some(path) = argument.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("ARGUS_CONFIG").map(PathBuf::from)
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command, parse};

    fn serve(config: &str, flags: &[&str]) -> Result<(String, Option<u16>), String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("argus.toml");
        std::fs::write(&file, config).expect("writes");
        let arguments = ["argus".into(), "--config".into(), file.into_os_string(), "serve".into()];
        let arguments = arguments.into_iter().chain(flags.iter().map(Into::into));
        match parse(arguments).map_err(|error| error.to_string())? {
            Cli { command: Command::Serve(args), .. } => Ok((args.listen, args.counting.workers)),
            _ => Err("another command".to_owned()),
        }
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_overrides_the_default() {
        let config = "listen = \"127.0.0.1:9\"\nworkers = 3\n";
        assert_eq!(serve("", &[]), Ok(("127.0.0.1:8080".to_owned(), None)));
        assert_eq!(serve(config, &[]), Ok(("127.0.0.1:9".to_owned(), Some(3))));
        assert_eq!(serve(config, &["--workers", "1"]), Ok(("127.0.0.1:9".to_owned(), Some(1))));
    }

    #[test]
    fn an_invalid_file_is_a_usage_error_with_the_reason() {
        for (config, reason) in [
            ("listn = \"x\"", "unknown key \"listn\""),
            ("workers = [1]", "workers must be a string, a number or a boolean"),
            ("workers = 0", "0 is not in 1..=256"),
            ("workers", "config file"),
        ] {
            let error = serve(config, &[]).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
