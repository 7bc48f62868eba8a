//! A prompt for statements, with a history.

use std::io::{Write, stderr};
use std::path::PathBuf;

use anyhow::Result;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::cli::terminal;

/// Statements in the history.
const HISTORY_MAX: usize = 1000;

/// The help text, for users who do not know the tables yet.
const HELP: &str = "\
End a statement with a semicolon. To list the tables and their columns:
  SELECT table_name, comment FROM information_schema.tables;
  SELECT column_name, data_type, comment FROM information_schema.columns WHERE table_name = 'errors';
\\q or Ctrl-D quits.";

/// Reads statements and runs `answer` on each, until the end of input. An error
/// is printed, and the next statement is read.
pub fn run(mut answer: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let config = Config::builder().max_history_size(HISTORY_MAX)?.build();
    let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
    let history = history_file();
    if let Some(path) = &history {
        // There is no history file the first time.
        let _ = editor.load_history(path);
    }
    let mut statement = String::new();
    loop {
        let line = match editor.readline(if statement.is_empty() { "argus> " } else { "   ..> " }) {
            Ok(line) => line,
            // Ctrl-C discards the current statement.
            Err(ReadlineError::Interrupted) => {
                statement.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" if statement.is_empty() => continue,
            "\\q" | "exit" | "quit" if statement.is_empty() => break,
            "\\?" | "help" if statement.is_empty() => {
                writeln!(stderr(), "{HELP}")?;
                continue;
            }
            line => {
                statement += line;
                statement.push('\n');
            }
        }
        if !statement.trim_end().ends_with(';') {
            continue;
        }
        editor.add_history_entry(statement.trim())?;
        if let Err(error) = answer(&statement) {
            writeln!(stderr(), "{}", terminal::lines(&format!("{error:#}")))?;
        }
        statement.clear();
    }
    if let Some(path) = &history {
        // The history is a convenience: an error is ignored.
        let _ = editor.save_history(path);
    }
    Ok(())
}

/// The path of the history file (XDG base directories: state).
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    std::fs::create_dir_all(&state).ok()?;
    Some(state.join("argus_history"))
}
