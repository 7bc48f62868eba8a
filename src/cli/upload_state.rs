//! What `argus upload` remembers of unfinished uploads, so that the same command continues after an interruption or a
//! restart of the machine: small files in `$XDG_STATE_HOME/argus`, or `~/.local/state/argus`.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The memory of one thing that is unfinished.
pub struct Remembered {
    /// `None` if there is no folder for it: then nothing is remembered.
    file: Option<PathBuf>,
}

impl Remembered {
    /// The memory of what `key` identifies.
    pub fn of(key: &Value) -> Remembered {
        let name = format!("{}.json", hex::encode(Sha256::digest(key.to_string())));
        Remembered { file: folder().map(|folder| folder.join(name)) }
    }

    /// What was remembered.
    pub fn get(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.file.as_ref()?).ok()?).ok()
    }

    /// Remembers a value, durably. An error costs only the ability to continue.
    pub fn set(&self, value: &Value) {
        let Some(file) = &self.file else { return };
        let written = || {
            let folder = file.parent().unwrap_or(file);
            std::fs::create_dir_all(folder)?;
            let mut new = tempfile::NamedTempFile::new_in(folder)?;
            new.write_all(value.to_string().as_bytes())?;
            new.as_file().sync_all()?;
            new.persist(file)?;
            std::io::Result::Ok(())
        };
        if let Err(error) = written() {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot remember an unfinished upload");
        }
    }

    /// Forgets it.
    pub fn forget(&self) {
        if let Some(file) = &self.file {
            // It may not exist.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn folder() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = std::env::var_os("XDG_STATE_HOME").and_then(|path| absolute(path.into()));
    let state = state.or_else(|| Some(absolute(std::env::var_os("HOME")?.into())?.join(".local/state")));
    Some(state?.join("argus"))
}
