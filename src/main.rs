//! The `argus` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    argus::cli::main()
}
