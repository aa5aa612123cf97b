//! Recovery after a kill: finds messages to deliver, removes orphans, and detects lost messages.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Serialize;
use tidespool_core::{SpoolEntry, SpoolId};

use crate::counters::Problems;
use crate::meta::Meta;
use crate::run_log::{Accepted, Line, Lost, Notes, RunLog};
use crate::sink::Sink;
use crate::spools::{DIRTY_EXPIRE, Spools, each};

/// Longest assumed duration of a commit. A store is on stable storage after `dirty_expire` and one
/// commit.
const ONE_COMMIT_MS: i64 = 1_000;

/// A message of which both spools have their part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: SpoolId,
    pub(crate) attempts: u32,
    pub(crate) next_try_ms: i64,
}

/// What the recovery found, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Recovery {
    /// Complete messages in the spools. They are delivered.
    pub(crate) resumed: u64,
    /// Those of the complete messages that were not acknowledged before the kill. They are
    /// delivered too.
    pub(crate) unacknowledged: u64,
    /// Metadata without data, removed.
    pub(crate) orphan_metas: u64,
    /// Data without metadata, removed.
    pub(crate) orphan_datas: u64,
    /// Acknowledged messages that are gone, within the window that the settings allow before a
    /// kill.
    pub(crate) lost_in_window: u64,
    /// Acknowledged messages that are gone outside of that window.
    pub(crate) lost_against_promise: u64,
}

/// The contents of both spools. Of the data, only lengths and checksums are kept.
#[derive(Debug, Default)]
struct Contents {
    metas: BTreeMap<SpoolId, Meta>,
    datas: BTreeMap<SpoolId, (u64, u32)>,
}

/// The actions of a recovery.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    deliver: Vec<Found>,
    adopt: Vec<Accepted>,
    orphan_metas: Vec<SpoolId>,
    orphan_datas: Vec<SpoolId>,
    lost: Vec<Lost>,
    /// Messages whose bytes differ from the stored ones.
    damaged: Vec<SpoolId>,
}

/// Reads both spools, removes orphans, and logs losses. Returns the messages to deliver, and
/// completes `notes`.
pub(crate) async fn recover(
    spools: &Spools,
    sink: &Sink,
    run_log: &RunLog,
    notes: &mut Notes,
    problems: &Problems,
) -> Result<(Vec<Found>, Recovery)> {
    sink.remove_unfinished()?;
    let contents = read_contents(spools, problems).await?;
    let mut arrived = BTreeSet::new();
    for id in notes.accepted.keys() {
        if sink.has(*id)? {
            arrived.insert(*id);
        }
    }
    let plan = plan(&contents, notes, &arrived);
    for accepted in &plan.adopt {
        run_log.append(&Line::Accepted(*accepted))?;
        notes.accepted.insert(accepted.id, *accepted);
    }
    for lost in &plan.lost {
        run_log.append(&Line::Lost(*lost))?;
        notes.lost.insert(lost.id, *lost);
    }
    for id in &plan.orphan_metas {
        spools.meta().remove(*id).await?;
    }
    for id in &plan.orphan_datas {
        spools.data().remove(*id).await?;
    }
    for id in &plan.damaged {
        problems.add(format!("message {id} was read from the spool with other bytes than stored"));
    }
    let excused = plan.lost.iter().filter(|lost| lost.excused).count();
    let recovery = Recovery {
        resumed: plan.deliver.len() as u64,
        unacknowledged: plan.adopt.len() as u64,
        orphan_metas: plan.orphan_metas.len() as u64,
        orphan_datas: plan.orphan_datas.len() as u64,
        lost_in_window: excused as u64,
        lost_against_promise: (plan.lost.len() - excused) as u64,
    };
    Ok((plan.deliver, recovery))
}

async fn read_contents(spools: &Spools, problems: &Problems) -> Result<Contents> {
    let mut contents = Contents::default();
    each(spools.meta(), |entry| {
        match entry {
            SpoolEntry::Item { id, data } => match Meta::from_bytes(&data) {
                Ok(meta) => drop(contents.metas.insert(id, meta)),
                Err(err) => problems.add(format!("the metadata of message {id} cannot be parsed: {err}")),
            },
            SpoolEntry::Corrupt { id, error } => {
                problems.add(format!("metadata of {id} is damaged: {error}"));
            }
        }
        Ok(())
    })
    .await?;
    each(spools.data(), |entry| {
        match entry {
            SpoolEntry::Item { id, data } => {
                contents.datas.insert(id, (data.len() as u64, crc32c::crc32c(&data)));
            }
            SpoolEntry::Corrupt { id, error } => problems.add(format!("data of {id} are damaged: {error}")),
        }
        Ok(())
    })
    .await?;
    Ok(contents)
}

fn plan(contents: &Contents, notes: &Notes, arrived: &BTreeSet<SpoolId>) -> Plan {
    let mut plan = Plan::default();
    for (id, meta) in &contents.metas {
        match contents.datas.get(id) {
            None => plan.orphan_metas.push(*id),
            Some(data) if *data != (meta.length, meta.crc32c) => plan.damaged.push(*id),
            Some(_) => {
                let Meta { index, attempts, next_try_ms, accepted_ms: at_ms, synced, .. } = *meta;
                plan.deliver.push(Found { id: *id, attempts, next_try_ms });
                if !notes.accepted.contains_key(id) {
                    plan.adopt.push(Accepted { id: *id, index, at_ms, synced });
                }
            }
        }
    }
    plan.orphan_datas =
        contents.datas.keys().filter(|id| !contents.metas.contains_key(id)).copied().collect();
    let whole = |id: &SpoolId| contents.metas.contains_key(id) && contents.datas.contains_key(id);
    let gone = notes.accepted.values().filter(|accepted| {
        let id = &accepted.id;
        !arrived.contains(id) && !whole(id) && !notes.lost.contains_key(id)
    });
    let last_sign_of_life_ms = notes.last_sign_of_life_ms().unwrap_or(0);
    plan.lost =
        gone.map(|gone| Lost { id: gone.id, excused: is_excused(gone, last_sign_of_life_ms) }).collect();
    plan
}

/// True if the loss is documented. The run was killed at its last logged line or later, so a
/// message acknowledged long enough before that line had to be on disk.
fn is_excused(accepted: &Accepted, last_sign_of_life_ms: i64) -> bool {
    let window_ms = i64::try_from(DIRTY_EXPIRE.as_millis()).unwrap_or(i64::MAX).saturating_add(ONE_COMMIT_MS);
    !accepted.synced && accepted.at_ms.saturating_add(window_ms) >= last_sign_of_life_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_log::{Run, VERSION};

    /// The log of a run of unsynced messages, accepted at the given times.
    fn notes(at_ms: &[i64]) -> (Notes, Vec<SpoolId>) {
        let accepted: Vec<Accepted> =
            (0..).zip(at_ms).map(|(index, at_ms)| accepted(index, *at_ms)).collect();
        let ids = accepted.iter().map(|accepted| accepted.id).collect();
        let run = Run {
            version: VERSION,
            messages: 10,
            seed: 1,
            failures: 0,
            origin: String::new(),
            fingerprint: 0,
            sink: String::new(),
        };
        let accepted = accepted.into_iter().map(|accepted| (accepted.id, accepted)).collect();
        (Notes { run, accepted, lost: BTreeMap::new() }, ids)
    }

    fn accepted(index: u64, at_ms: i64) -> Accepted {
        Accepted { id: SpoolId::new(), index, at_ms, synced: false }
    }

    fn meta(index: u64) -> Meta {
        Meta {
            index,
            sender: "a@b".into(),
            recipient: "c@d".into(),
            attempts: 1,
            next_try_ms: 5,
            accepted_ms: 3,
            synced: false,
            length: 4,
            crc32c: 9,
        }
    }

    fn in_both(contents: &mut Contents, id: SpoolId, index: u64) {
        contents.metas.insert(id, meta(index));
        contents.datas.insert(id, (4, 9));
    }

    #[test]
    fn complete_messages_are_delivered_logged_or_not() {
        let (notes, ids) = notes(&[1]);
        let mut contents = Contents::default();
        let unnoted = SpoolId::new();
        in_both(&mut contents, ids[0], 0);
        in_both(&mut contents, unnoted, 1);
        let plan = plan(&contents, &notes, &BTreeSet::new());
        let found = |id| Found { id, attempts: 1, next_try_ms: 5 };
        assert_eq!(plan.deliver, [found(ids[0]), found(unnoted)]);
        assert_eq!(plan.adopt, [Accepted { id: unnoted, index: 1, at_ms: 3, synced: false }]);
        assert!(plan.lost.is_empty() && plan.orphan_metas.is_empty() && plan.orphan_datas.is_empty());
    }

    #[test]
    fn an_arrived_message_still_in_the_spools_is_delivered_again() {
        let (notes, ids) = notes(&[1]);
        let mut contents = Contents::default();
        in_both(&mut contents, ids[0], 0);
        let plan = plan(&contents, &notes, &BTreeSet::from([ids[0]]));
        assert_eq!(plan.deliver.len(), 1);
        assert!(plan.lost.is_empty());
    }

    #[test]
    fn incomplete_messages_are_removed_and_lost_unless_they_arrived() {
        let (notes, ids) = notes(&[1, 2, 3, 4]);
        let mut contents = Contents::default();
        contents.metas.insert(ids[0], meta(0));
        contents.metas.insert(ids[1], meta(1));
        contents.datas.insert(ids[2], (4, 9));
        contents.datas.insert(ids[3], (4, 9));
        let plan = plan(&contents, &notes, &BTreeSet::from([ids[0], ids[2]]));
        assert_eq!(plan.orphan_metas, [ids[0], ids[1]]);
        assert_eq!(plan.orphan_datas, [ids[2], ids[3]]);
        assert_eq!(plan.lost.iter().map(|lost| lost.id).collect::<Vec<_>>(), [ids[1], ids[3]]);
        assert!(plan.deliver.is_empty());
    }

    #[test]
    fn a_message_with_wrong_bytes_is_damaged_and_not_delivered() {
        let (notes, ids) = notes(&[1]);
        let mut contents = Contents::default();
        in_both(&mut contents, ids[0], 0);
        contents.datas.insert(ids[0], (4, 8));
        let plan = plan(&contents, &notes, &BTreeSet::new());
        assert_eq!(plan.damaged, ids);
        assert!(plan.deliver.is_empty());
    }

    #[test]
    fn a_loss_is_excused_only_for_unsynced_messages_shortly_before_the_kill() {
        let last = 100_000;
        let at = |at_ms, synced| is_excused(&Accepted { synced, ..accepted(0, at_ms) }, last);
        assert!(at(last, false));
        assert!(at(last - 1_500, false));
        assert!(!at(last - 1_501, false));
        assert!(!at(last, true));
    }

    #[test]
    fn a_loss_is_classified_once() {
        let (mut notes, ids) = notes(&[100_000]);
        let first = plan(&Contents::default(), &notes, &BTreeSet::new());
        assert_eq!(first.lost, [Lost { id: ids[0], excused: true }]);
        // The run continues after the restart. The old loss must not count as a loss outside of the
        // window.
        notes.lost.insert(ids[0], first.lost[0]);
        let later = accepted(1, 200_000);
        notes.accepted.insert(later.id, later);
        assert_eq!(plan(&Contents::default(), &notes, &BTreeSet::new()).lost.len(), 1, "only the later one");
    }
}
