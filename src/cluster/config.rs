//! The processes of a cluster, and the key by which they know each other.

use std::path::Path;

use anyhow::{Context, Result, bail};
use subtle::ConstantTimeEq;

use crate::domain::digest::Digest;
use crate::metadata::Deployment;

/// The processes of a cluster, and which of them this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The number of this process, from 0.
    pub process: usize,
    /// For each process the HOST:PORT on which the others reach it.
    pub hosts: Vec<String>,
}

impl ClusterConfig {
    /// Reads a file with a line HOST:PORT for each of the `processes`.
    pub fn read(processes: usize, process: usize, file: &Path) -> Result<ClusterConfig> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read --hosts {}", file.display()))?;
        ClusterConfig::parse(processes, process, &text).with_context(|| format!("in --hosts {}", file.display()))
    }

    fn parse(processes: usize, process: usize, text: &str) -> Result<ClusterConfig> {
        let hosts: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if hosts.len() != processes {
            bail!("there are {} lines, and --processes is {processes}; write one line HOST:PORT for each", hosts.len());
        }
        if process >= processes {
            bail!("--process is {process}, and --processes is {processes}; processes are numbered from 0");
        }
        for (line, host) in hosts.iter().enumerate() {
            let port = host.rsplit_once(':').and_then(|(name, port)| (!name.is_empty()).then_some(port));
            if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
                bail!("line {} is {host:?}; write HOST:PORT", line + 1);
            }
            if hosts[..line].contains(host) {
                bail!("{host} is there twice; each process needs an address of its own");
            }
        }
        Ok(ClusterConfig { process, hosts })
    }

    /// The address of this process for the others.
    pub fn own(&self) -> &str {
        &self.hosts[self.process]
    }

    /// The addresses of the other processes.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().enumerate().filter(|(process, _)| *process != self.process).map(|(_, host)| &host[..])
    }
}

/// A key of a deployment, which only processes with access to its metadata know.
#[derive(Clone)]
pub struct ClusterKey(String);

/// The keys of a deployment. A request of a client that is passed on has another one than those of the processes, so that it
/// cannot become one of them, whatever its path is.
#[derive(Clone)]
pub struct ClusterKeys {
    /// Of the requests of the processes.
    pub processes: ClusterKey,
    /// Of the requests of clients that a process has checked and passes on.
    pub forwarded: ClusterKey,
}

impl ClusterKeys {
    /// The keys of a deployment.
    pub fn of(deployment: &Deployment) -> ClusterKeys {
        let key = |purpose: &str| {
            let mut digest = Digest::default();
            digest.update(purpose.as_bytes());
            digest.update(&deployment.secret);
            ClusterKey(digest.hex())
        };
        ClusterKeys { processes: key("argus cluster: processes\n"), forwarded: key("argus cluster: forwarded\n") }
    }
}

impl ClusterKey {
    /// Its text, for a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text is this key, in a time that does not depend on the text.
    pub fn is(&self, text: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(text).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts_has_an_address_of_its_own_for_each_process() {
        let config = ClusterConfig::parse(2, 1, "a:1\n\n b:2 \n").expect("is valid");
        assert_eq!((config.own(), config.others().collect::<Vec<_>>()), ("b:2", vec!["a:1"]));
        let table = [
            (3, 0, "a:1\nb:2", "there are 2 lines, and --processes is 3; write one line HOST:PORT for each"),
            (2, 2, "a:1\nb:2", "--process is 2, and --processes is 2; processes are numbered from 0"),
            (2, 0, "a:1\na:1", "a:1 is there twice; each process needs an address of its own"),
            (2, 0, "a:1\nb", "line 2 is \"b\"; write HOST:PORT"),
            (2, 0, "a:1\nb:0", "line 2 is \"b:0\"; write HOST:PORT"),
            (2, 0, "a:1\n:7", "line 2 is \":7\"; write HOST:PORT"),
        ];
        for (processes, process, text, expected) in table {
            let error = ClusterConfig::parse(processes, process, text).expect_err(text);
            assert_eq!(error.to_string(), expected);
        }
    }
}
