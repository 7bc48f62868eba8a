//! The status of a batch, as one pure function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchStatus {
    /// Files may come.
    Pending,
    /// Completed by its owner: no file may come.
    Uploaded,
    /// Its blocks are being fed.
    Scattering,
    /// All its blocks are fed and its epoch is sealed.
    Scattered,
    /// The frontier has yet to pass its epoch.
    Gathering,
    /// The frontier has passed its epoch: the report is final.
    Gathered,
    /// A diagnosis is being made.
    Diagnosing,
    /// All is done.
    Completed,
    /// It went wrong, with a reason.
    Failed,
}

/// What can happen to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchEvent {
    /// Its owner says that it has all files.
    Complete,
    /// Feeding of its blocks began.
    ScatterBegan,
    /// All its blocks are fed.
    AllFilesScattered,
    /// The wait for the frontier began.
    GatherBegan,
    /// The frontier has passed its epoch.
    AllFilesGathered,
    /// A diagnosis began.
    DiagnosisBegan,
    /// The diagnosis, or its absence, is there.
    DiagnosisCompleted,
    /// Something went wrong.
    Failed,
    /// Its owner wants to change it again.
    Reopen,
}

/// An event that cannot happen in this status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a batch that is {status}")]
pub struct IllegalTransition {
    status: BatchStatus,
    event: BatchEvent,
}

use BatchStatus::{Completed, Diagnosing, Failed, Gathered, Gathering, Pending, Scattered, Scattering, Uploaded};

impl BatchStatus {
    /// All statuses, in the order in which a batch passes them.
    pub const ALL: [BatchStatus; 9] =
        [Pending, Uploaded, Scattering, Scattered, Gathering, Gathered, Diagnosing, Completed, Failed];

    /// Applies `event`. An event that happened before changes nothing, so
    /// redelivery is harmless.
    pub fn after(self, event: BatchEvent) -> Result<BatchStatus, IllegalTransition> {
        let (from, to) = match event {
            BatchEvent::Complete => (Pending, Uploaded),
            BatchEvent::ScatterBegan => (Uploaded, Scattering),
            BatchEvent::AllFilesScattered => (Scattering, Scattered),
            BatchEvent::GatherBegan => (Scattered, Gathering),
            BatchEvent::AllFilesGathered => (Gathering, Gathered),
            BatchEvent::DiagnosisBegan => (Gathered, Diagnosing),
            BatchEvent::DiagnosisCompleted => (Diagnosing, Completed),
            BatchEvent::Failed => match self {
                Scattering | Gathering | Diagnosing | Failed => return Ok(Failed),
                _ => return Err(IllegalTransition { status: self, event }),
            },
            BatchEvent::Reopen => match self {
                Pending | Completed | Failed => return Ok(Pending),
                _ => return Err(IllegalTransition { status: self, event }),
            },
        };
        match self {
            Failed => Err(IllegalTransition { status: self, event }),
            _ if self == from => Ok(to),
            // Every later status has this event behind it.
            _ if self >= to => Ok(self),
            _ => Err(IllegalTransition { status: self, event }),
        }
    }

    /// Whether the report is final: the frontier has passed the batch's epoch.
    pub fn is_gathered(self) -> bool {
        matches!(self, Gathered | Diagnosing | Completed)
    }

    /// Whether nothing more will happen by itself.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Pending | Completed | Failed)
    }

    /// The word for it, in every interface.
    pub fn word(self) -> &'static str {
        match self {
            Pending => "pending",
            Uploaded => "uploaded",
            Scattering => "scattering",
            Scattered => "scattered",
            Gathering => "gathering",
            Gathered => "gathered",
            Diagnosing => "diagnosing",
            Completed => "completed",
            Failed => "failed",
        }
    }
}

impl fmt::Display for BatchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status of a batch; it is one of {words}", words = BatchStatus::ALL.map(BatchStatus::word).join(", "))]
pub struct UnknownStatus(String);

impl FromStr for BatchStatus {
    type Err = UnknownStatus;

    fn from_str(word: &str) -> Result<BatchStatus, UnknownStatus> {
        BatchStatus::ALL.into_iter().find(|status| status.word() == word).ok_or_else(|| UnknownStatus(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_ORDER: [BatchEvent; 7] = [
        BatchEvent::Complete,
        BatchEvent::ScatterBegan,
        BatchEvent::AllFilesScattered,
        BatchEvent::GatherBegan,
        BatchEvent::AllFilesGathered,
        BatchEvent::DiagnosisBegan,
        BatchEvent::DiagnosisCompleted,
    ];

    #[test]
    fn a_batch_passes_every_status_in_order() {
        let mut status = Pending;
        for (event, expected) in IN_ORDER.into_iter().zip(&BatchStatus::ALL[1..8]) {
            status = status.after(event).expect("the event is next");
            assert_eq!(status, *expected);
        }
    }

    #[test]
    fn a_repeated_event_changes_nothing_and_an_early_one_is_refused() {
        for (index, status) in BatchStatus::ALL[..8].iter().enumerate() {
            for (number, event) in IN_ORDER.into_iter().enumerate() {
                let after = status.after(event);
                match number.cmp(&index) {
                    std::cmp::Ordering::Less => assert_eq!(after, Ok(*status)),
                    std::cmp::Ordering::Equal => assert_eq!(after, Ok(BatchStatus::ALL[index + 1])),
                    std::cmp::Ordering::Greater => assert!(after.is_err()),
                }
            }
        }
    }

    #[test]
    fn only_a_batch_at_work_can_fail_and_a_failed_one_stays_so() {
        for status in BatchStatus::ALL {
            let fails = matches!(status, Scattering | Gathering | Diagnosing | Failed);
            assert_eq!(status.after(BatchEvent::Failed).is_ok(), fails, "{status}");
        }
        assert!(Failed.after(BatchEvent::Complete).is_err());
    }

    #[test]
    fn only_a_batch_at_rest_can_be_opened_again() {
        for status in BatchStatus::ALL {
            assert_eq!(status.after(BatchEvent::Reopen).is_ok(), status.is_at_rest(), "{status}");
        }
    }

    #[test]
    fn words_and_statuses_are_the_same() {
        for status in BatchStatus::ALL {
            assert_eq!(status.word().parse(), Ok(status));
        }
        assert!("open".parse::<BatchStatus>().is_err());
    }
}
