//! At open: the ledger, the segments and the log of what lives in them, read and compared.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::ballast::Ballast;
use super::ledger::{Ledger, LedgerError, LedgerFile};
use super::liveness::{LivenessError, LivenessLog};
use super::retained::Retained;
use crate::durable::{Durable, DurableError, SledOptions};
use crate::journal::{FileDamage, Filed, Recovered, RecoveryError, recover};
use crate::storage::{Storage, is_no_room_kind};

/// Why the spool can't be opened. Nothing was lost by trying.
#[derive(Debug, Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Journal(#[from] RecoveryError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Engine(#[from] DurableError),
    #[error(transparent)]
    Liveness(#[from] LivenessError),
}

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) dir: PathBuf,
    pub(crate) spool: [u8; 16],
}

impl Places {
    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(crate) fn sled(&self) -> PathBuf {
        self.dir.join("sled")
    }
}

/// What was read from disk.
pub(crate) struct Opened {
    pub(crate) durable: Durable,
    pub(crate) ledger: Ledger,
    pub(crate) liveness: LivenessLog,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
    /// The index has to be built anew.
    pub(crate) rebuilds_index: bool,
}

/// What a directory holds beside the index.
pub(crate) struct Examined {
    /// Where it was missing or damaged, one that names the segments that were found.
    pub(crate) ledger: Ledger,
    /// False: the ledger on disk was missing, damaged or out of date.
    pub(crate) is_ledger_whole: bool,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
}

/// The ledger, or what is wrong with it. `None` without damage: there is none and need not be one.
pub(crate) struct LedgerFound {
    pub(crate) ledger: Option<Ledger>,
    damage: Vec<FileDamage>,
}

/// Reads the ledger. In a `fresh` directory there need not be one.
pub(crate) fn read_ledger(places: &Places, fresh: bool) -> Result<LedgerFound, OpeningError> {
    let file = LedgerFile::new(places.storage.clone(), &places.dir);
    let damaged = |path: PathBuf, what| LedgerFound { ledger: None, damage: vec![FileDamage { path, what }] };
    match file.read() {
        Ok(Some(ledger)) => Ok(LedgerFound { ledger: Some(ledger), damage: Vec::new() }),
        Ok(None) if fresh => Ok(LedgerFound { ledger: Some(Ledger::default()), damage: Vec::new() }),
        Ok(None) => {
            let what = "it is missing: what is filed is not known";
            Ok(damaged(file.path().to_owned(), what.to_owned()))
        }
        Err(LedgerError::Damaged { path, what }) => {
            Ok(damaged(path, format!("{what}: what is filed is not known")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Replays the journal by what the ledger says is filed. With `repair` false nothing is changed.
///
/// Without a ledger everything that a segment holds is taken for live, in its newest version.
pub(crate) fn examine(places: &Places, found: LedgerFound, repair: bool) -> Result<Examined, OpeningError> {
    let LedgerFound { ledger, mut damage } = found;
    let replay = |filed: &Filed| recover(&places.storage, &places.journal(), places.spool, filed, repair);
    if let Some(ledger) = ledger {
        let recovered = replay(&filed_by(&ledger))?;
        if !recovered.outran_ledger {
            return Ok(Examined { ledger, is_ledger_whole: true, recovered, damage });
        }
        // Worse than none: what it does not list would count as free.
        let what = "it is of an earlier time than the rest: what is filed is not known".to_owned();
        damage.push(FileDamage { path: places.dir.join("ledger"), what });
    }
    let recovered = replay(&Filed { unknown: true, ..Filed::default() })?;
    // What lives in each is not known. The rebuild of the index finds it out.
    let unknown = |size| Retained { size, live_bytes: 0, live: 1 };
    let retained = recovered.retained.iter().map(|segment| (segment.generation, unknown(segment.size)));
    let ledger = Ledger { retained: retained.collect(), ..Ledger::default() };
    Ok(Examined { ledger, is_ledger_whole: false, recovered, damage })
}

/// Reads everything. Opens the index where it can be kept, and begins an empty one where nothing is
/// filed. In every other case the checkpoint thread rebuilds it.
pub(crate) fn open_filed(
    places: &Places,
    options: SledOptions,
    ballast: &Ballast,
    fresh: bool,
) -> Result<Opened, OpeningError> {
    let found = read_ledger(places, fresh)?;
    let Examined { mut ledger, is_ledger_whole, mut recovered, mut damage } = examine(places, found, true)?;
    let is_retained = |generation: u64| ledger.retained.contains_key(&generation);
    let (liveness, live) =
        LivenessLog::open(places.storage.clone(), &places.dir, ledger.liveness, &is_retained)?;
    damage.extend(live.damage().iter().map(|what| FileDamage { path: liveness.path(), what: what.clone() }));
    drop(live);
    let durable = Durable::new(&places.sled(), options);
    // From here on the index's files change.
    let closed = ledger.index.take();
    let is_index_kept = closed.is_some_and(|closed| durable.open_closed(closed));
    let is_nothing_filed = ledger.retained.is_empty();
    if !is_index_kept && is_nothing_filed {
        begin_empty(&durable, ballast)?;
        ledger.tally = crate::durable::Tally::default();
    }
    if !is_ledger_whole {
        // A removal of any id may be one of what is filed.
        ledger.high = super::ledger::HighKeys::highest();
        ledger.filed_seq = 0;
    }
    recovered.retained.iter().chain(&recovered.journal).for_each(|segment| {
        if let Some(entry) = ledger.retained.get_mut(&segment.generation) {
            entry.size = segment.size;
        }
    });
    recovered.replayed.next_seq = recovered.replayed.next_seq.max(ledger.filed_seq + 1);
    let rebuilds_index = !is_index_kept && !is_nothing_filed;
    Ok(Opened { durable, ledger, liveness, recovered, damage, rebuilds_index })
}

/// Nothing is filed: an empty index is whole.
fn begin_empty(durable: &Durable, ballast: &Ballast) -> Result<(), DurableError> {
    match durable.begin() {
        Err(DurableError::Engine { kind: Some(kind), .. }) if is_no_room_kind(kind) => {
            ballast.release();
            durable.begin()?;
        }
        begun => begun?,
    }
    durable.finish();
    Ok(())
}

fn filed_by(ledger: &Ledger) -> Filed {
    Filed {
        generation: ledger.filed_generation,
        seq: ledger.filed_seq,
        durable_seq: ledger.durable_seq,
        retained: ledger.retained.keys().copied().collect(),
        unused: ledger
            .retained
            .iter()
            .filter(|(_, kept)| kept.live == 0)
            .map(|(generation, _)| *generation)
            .collect(),
        next_generation: ledger.next_generation,
        clean_end: ledger.index.is_some(),
        unknown: false,
    }
}
