//! Reads manifest, segments and liveness log at open, and compares them.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::ballast::Ballast;
use super::manifest::{Manifest, ManifestError, ManifestFile};
use super::value_log::liveness::{LivenessError, LivenessLog};
use super::value_log::retained::Retained;
use crate::index::{DiskIndex, INDEX_DIR, IndexError, Tally};
use crate::journal::{Checkpointed, FileDamage, Recovered, RecoveryError, recover};
use crate::storage::{Storage, is_no_room_kind};

/// Why the spool can't be opened. The failed open lost nothing.
#[derive(Debug, Error)]
pub(crate) enum OpeningError {
    #[error(transparent)]
    Journal(#[from] RecoveryError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Engine(#[from] IndexError),
    #[error(transparent)]
    Liveness(#[from] LivenessError),
}

/// The storage, the directory and the id of the spool.
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

    pub(crate) fn index(&self) -> PathBuf {
        self.dir.join(INDEX_DIR)
    }
}

/// The state that was read from disk at open.
pub(crate) struct OpenedCheckpoint {
    pub(crate) durable: DiskIndex,
    pub(crate) manifest: Manifest,
    pub(crate) liveness: LivenessLog,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
    /// The index must be rebuilt.
    pub(crate) rebuilds_index: bool,
}

/// The contents of a spool directory, without the index.
pub(crate) struct Examined {
    /// The manifest on disk. If that was unusable, a manifest of the segments that were found.
    pub(crate) manifest: Manifest,
    /// False if the manifest on disk was missing, damaged or outdated.
    pub(crate) is_manifest_whole: bool,
    pub(crate) recovered: Recovered,
    pub(crate) damage: Vec<FileDamage>,
}

/// The manifest, or the damage that made it unusable.
pub(crate) struct ManifestFound {
    pub(crate) manifest: Option<Manifest>,
    damage: Vec<FileDamage>,
}

/// Reads the manifest. A `fresh` directory may have none.
pub(crate) fn read_manifest(places: &Places, fresh: bool) -> Result<ManifestFound, OpeningError> {
    let file = ManifestFile::new(places.storage.clone(), &places.dir);
    let damaged =
        |path: PathBuf, what| ManifestFound { manifest: None, damage: vec![FileDamage { path, what }] };
    match file.read() {
        Ok(Some(manifest)) => Ok(ManifestFound { manifest: Some(manifest), damage: Vec::new() }),
        Ok(None) if fresh => Ok(ManifestFound { manifest: Some(Manifest::default()), damage: Vec::new() }),
        Ok(None) => {
            let what = "it is missing: what is checkpointed is not known";
            Ok(damaged(file.path().to_owned(), what.to_owned()))
        }
        Err(ManifestError::Damaged { path, what }) => {
            Ok(damaged(path, format!("{what}: what is checkpointed is not known")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Replays the journal segments that the manifest does not list as checkpointed. If `repair` is
/// false, changes nothing.
///
/// Without a manifest, the newest version of each message in each segment counts as live.
pub(crate) fn examine(places: &Places, found: ManifestFound, repair: bool) -> Result<Examined, OpeningError> {
    let ManifestFound { manifest, mut damage } = found;
    let replay = |checkpointed: &Checkpointed| {
        recover(&places.storage, &places.journal(), places.spool, checkpointed, repair)
    };
    if let Some(manifest) = manifest {
        let recovered = replay(&checkpointed_by(&manifest))?;
        if !recovered.outran_manifest {
            return Ok(Examined { manifest, is_manifest_whole: true, recovered, damage });
        }
        // Worse than a missing manifest: segments that it does not list would count as free.
        let what = "it is of an earlier time than the rest: what is checkpointed is not known".to_owned();
        damage.push(FileDamage { path: places.dir.join("manifest"), what });
    }
    let recovered = replay(&Checkpointed { unknown: true, ..Checkpointed::default() })?;
    // Which records live is not known here. The rebuild of the index finds out.
    let unknown = |size| Retained { size, live_bytes: 0, live: 1 };
    let retained = recovered.retained.iter().map(|segment| (segment.generation, unknown(segment.size)));
    let manifest = Manifest { retained: retained.collect(), ..Manifest::default() };
    Ok(Examined { manifest, is_manifest_whole: false, recovered, damage })
}

/// Reads the state and opens the index. Keeps the index if its files are unchanged, and creates an
/// empty one if nothing is checkpointed. Otherwise the checkpointer thread rebuilds it.
pub(crate) fn open_checkpoint(
    places: &Places,
    durable: DiskIndex,
    ballast: &Ballast,
    fresh: bool,
) -> Result<OpenedCheckpoint, OpeningError> {
    let found = read_manifest(places, fresh)?;
    let Examined { mut manifest, is_manifest_whole, mut recovered, mut damage } =
        examine(places, found, true)?;
    let is_retained = |generation: u64| manifest.retained.contains_key(&generation);
    let (liveness, live) =
        LivenessLog::open(places.storage.clone(), &places.dir, manifest.liveness, &is_retained)?;
    damage.extend(live.damage().iter().map(|what| FileDamage { path: liveness.path(), what: what.clone() }));
    drop(live);
    // The files of the index change from here on, so the manifest must not describe them.
    let closed = manifest.index.take();
    let is_index_kept = closed.is_some_and(|closed| durable.open_closed(closed));
    let is_nothing_checkpointed = manifest.retained.is_empty();
    if !is_index_kept && is_nothing_checkpointed {
        begin_empty(&durable, ballast)?;
        manifest.tally = Tally::default();
    }
    if !is_manifest_whole {
        // A removal of any id may concern a checkpointed message.
        manifest.high = super::manifest::HighKeys::highest();
        manifest.checkpointed_seq = 0;
    }
    recovered.retained.iter().chain(&recovered.journal).for_each(|segment| {
        if let Some(entry) = manifest.retained.get_mut(&segment.generation) {
            entry.size = segment.size;
        }
    });
    recovered.replayed.next_seq = recovered.replayed.next_seq.max(manifest.checkpointed_seq + 1);
    let rebuilds_index = !is_index_kept && !is_nothing_checkpointed;
    Ok(OpenedCheckpoint { durable, manifest, liveness, recovered, damage, rebuilds_index })
}

/// Creates an empty index, which is complete because nothing is checkpointed.
fn begin_empty(durable: &DiskIndex, ballast: &Ballast) -> Result<(), IndexError> {
    match durable.begin() {
        Err(IndexError::Engine { kind: Some(kind), .. }) if is_no_room_kind(kind) => {
            ballast.release();
            durable.begin()?;
        }
        begun => begun?,
    }
    durable.finish();
    Ok(())
}

fn checkpointed_by(manifest: &Manifest) -> Checkpointed {
    Checkpointed {
        generation: manifest.checkpointed_generation,
        seq: manifest.checkpointed_seq,
        durable_seq: manifest.durable_seq,
        retained: manifest.retained.keys().copied().collect(),
        unused: manifest
            .retained
            .iter()
            .filter(|(_, kept)| kept.live == 0)
            .map(|(generation, _)| *generation)
            .collect(),
        next_generation: manifest.next_generation,
        clean_end: manifest.index.is_some(),
        unknown: false,
    }
}
