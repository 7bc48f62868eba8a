//! Tools that are Python packages, each in its own virtual environment, because their dependencies conflict.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A package and its script.
#[derive(Debug)]
pub struct Package {
    /// Its name in the results.
    pub name: &'static str,
    /// Its name in the package index.
    pub package: &'static str,
    /// The module that it must provide.
    pub module: &'static str,
    /// The script that counts the matches of a pattern in files.
    pub script: &'static str,
    /// Whether it gets only a part of the files.
    pub slow: bool,
}

/// A tool that Argus has a target against.
pub const DUCKDB: &str = "DuckDB";
/// A tool that Argus has a target against.
pub const CHDB: &str = "ClickHouse (chdb)";

/// All packages.
pub const PACKAGES: [Package; 6] = [
    Package {
        name: DUCKDB,
        package: "duckdb",
        module: "duckdb",
        script: include_str!("../../peers/duckdb_peer.py"),
        slow: false,
    },
    Package {
        name: CHDB,
        package: "chdb",
        module: "chdb",
        script: include_str!("../../peers/chdb_peer.py"),
        slow: false,
    },
    Package {
        name: "Polars",
        package: "polars",
        module: "polars",
        script: include_str!("../../peers/polars_peer.py"),
        slow: false,
    },
    Package {
        name: "bytewax",
        package: "bytewax",
        module: "bytewax",
        script: include_str!("../../peers/bytewax_peer.py"),
        slow: true,
    },
    Package {
        name: "Pathway",
        package: "pathway",
        module: "pathway",
        script: include_str!("../../peers/pathway_peer.py"),
        slow: true,
    },
    Package {
        name: "Flink",
        package: "apache-flink",
        module: "pyflink",
        script: include_str!("../../peers/flink_peer.py"),
        slow: true,
    },
];

/// Installs the wanted packages. A package that cannot be installed is reported and skipped.
pub fn install(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for Package { package, .. } in PACKAGES.iter().filter(|package| wanted(package.name)) {
        let home = folder.join(package);
        writeln!(stderr(), "installing {package} into {}", home.display())?;
        let created = Command::new("python3").args(["-m", "venv"]).arg(&home).status().context("cannot run python3")?;
        ensure!(created.success(), "python3 -m venv cannot create an environment in {}", home.display());
        let installed =
            Command::new(home.join("bin/python3")).args(["-m", "pip", "install", "-q", package]).status()?;
        if !installed.success() {
            writeln!(stderr(), "cannot install {package} ({installed}); it is skipped")?;
        }
    }
    Ok(())
}

impl Package {
    /// A Python with the package: from its own environment, or the system's.
    pub fn python(&self, folder: &Path) -> Option<PathBuf> {
        let own = std::path::absolute(folder.join(self.package).join("bin/python3")).ok()?;
        [own, PathBuf::from("python3")].into_iter().find(|python| {
            let check =
                format!("import importlib.util, sys; sys.exit(importlib.util.find_spec('{}') is None)", self.module);
            let found = Command::new(python).args(["-c", &check]).stderr(Stdio::null()).status();
            found.is_ok_and(|status| status.success())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_valid_python() {
        for Package { name, script, .. } in &PACKAGES {
            let parsed =
                Command::new("python3").args(["-c", "import ast, sys; ast.parse(sys.argv[1])", script]).status();
            assert!(parsed.expect("python3 is installed").success(), "the script of {name}");
        }
    }
}
