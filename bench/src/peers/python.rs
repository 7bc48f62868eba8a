//! Peers that are Python packages, each in an environment of its own, for what they need differs.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A package and how it is put to use.
#[derive(Debug)]
pub struct Package {
    /// What the peer is called in the results.
    pub name: &'static str,
    /// What it is called where it is installed from.
    pub package: &'static str,
    /// The module that must be there.
    pub module: &'static str,
    /// Counts what a pattern finds in files.
    pub script: &'static str,
    /// Whether it gets a part of the files only.
    pub slow: bool,
}

/// All of them.
pub const PACKAGES: [Package; 6] = [
    Package {
        name: super::field::DUCKDB,
        package: "duckdb",
        module: "duckdb",
        script: include_str!("../../peers/duckdb_peer.py"),
        slow: false,
    },
    Package {
        name: super::field::CHDB,
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

/// Gets the packages of the peers that are wanted. One that cannot be had is told and left out.
pub fn install(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for Package { package, .. } in PACKAGES.iter().filter(|package| wanted(package.name)) {
        let home = folder.join(package);
        writeln!(stderr(), "installing {package} into {}", home.display())?;
        let made = Command::new("python3").args(["-m", "venv"]).arg(&home).status().context("python3 is needed")?;
        ensure!(made.success(), "python3 cannot make an environment in {}", home.display());
        let got = Command::new(home.join("bin/python3")).args(["-m", "pip", "install", "-q", package]).status()?;
        if !got.success() {
            writeln!(stderr(), "{package} could not be installed")?;
        }
    }
    Ok(())
}

impl Package {
    /// The Python that has the package: the one of its own, or the system's.
    pub fn python(&self, folder: &Path) -> Option<PathBuf> {
        let own = std::path::absolute(folder.join(self.package).join("bin/python3")).ok()?;
        [own, PathBuf::from("python3")].into_iter().find(|python| {
            let looked =
                format!("import importlib.util, sys; sys.exit(importlib.util.find_spec('{}') is None)", self.module);
            let found = Command::new(python).args(["-c", &looked]).stderr(Stdio::null()).status();
            found.is_ok_and(|status| status.success())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_python() {
        for Package { name, script, .. } in &PACKAGES {
            let parsed =
                Command::new("python3").args(["-c", "import ast, sys; ast.parse(sys.argv[1])", script]).status();
            assert!(parsed.expect("python3 is installed").success(), "the script of {name}");
        }
    }
}
