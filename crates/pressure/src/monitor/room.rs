//! What the clients may use together before memory is short, if a hard limit exists. Pure.

use super::sample::Sample;
use crate::config::HYSTERESIS;
use crate::{PressureConfig, Source};

/// Totals over the clients of a monitor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Their accounted memory, in bytes.
    pub(super) accounted: u64,
    /// Their budgets, in bytes.
    pub(super) budgets: u64,
}

/// Bytes for all clients together, as of the latest reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryRoom {
    /// The clients may grow up to this.
    growth: u64,
    /// The clients may keep memory up to this: more would make memory short.
    stay: u64,
    budgets: u64,
}

impl MemoryRoom {
    /// `None` if exceeding the limit kills no process. The machine's memory is shared with other
    /// programs: their use is no reason to stay small while memory suffices.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of the limit"
    )]
    pub(super) fn of(sample: &Sample, config: &PressureConfig, clients: Totals) -> Option<Self> {
        let kills = match sample.source {
            Source::CgroupV1 | Source::CgroupV2 => true,
            Source::Process => config.memory_limit.is_some(),
            Source::System => false,
        };
        let others = sample.used.saturating_sub(clients.accounted);
        let up_to = |part: f64| ((sample.limit as f64 * part) as u64).saturating_sub(others);
        kills.then(|| Self {
            growth: up_to(config.low - HYSTERESIS),
            stay: up_to(config.low),
            budgets: clients.budgets,
        })
    }

    /// Adds a client with this budget.
    pub(super) fn note_joined(&mut self, budget: u64) {
        self.budgets = self.budgets.saturating_add(budget);
    }

    /// The share of a client with this budget, which uses `accounted` bytes now.
    pub(super) fn share(&self, budget: u64, accounted: u64) -> u64 {
        let part = |bytes: u64| {
            let product =
                u128::from(bytes) * u128::from(budget) / u128::from(self.budgets.max(budget).max(1));
            u64::try_from(product).unwrap_or(u64::MAX)
        };
        accounted.clamp(part(self.growth), part(self.stay).max(part(self.growth)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sample(used: u64, source: Source) -> Sample {
        Sample { used: used * MIB, limit: 1000 * MIB, source, resident: None, stall_ratio: None }
    }

    /// Growth up to 75 % and keeping up to 80 % of 1000 MiB.
    fn room(used: u64, accounted: u64, budgets: u64) -> MemoryRoom {
        let clients = Totals { accounted: accounted * MIB, budgets: budgets * MIB };
        MemoryRoom::of(&sample(used, Source::CgroupV2), &PressureConfig::default(), clients).unwrap()
    }

    #[test]
    fn memory_of_others_is_subtracted() {
        // 300 MiB belong to others, including the process's own heap.
        let room = room(500, 200, 400);
        assert_eq!(room.share(400 * MIB, 200 * MIB), 450 * MIB);
        assert_eq!(room.share(400 * MIB, 470 * MIB), 470 * MIB, "it may keep what it uses");
        assert_eq!(room.share(400 * MIB, 600 * MIB), 500 * MIB, "up to the level low");
    }

    #[test]
    fn several_clients_share_the_room_by_their_budgets() {
        let room = room(0, 0, 2000);
        assert_eq!(room.share(500 * MIB, 0) + room.share(1500 * MIB, 0), 750 * MIB);
        assert_eq!(room.share(500 * MIB, 0) / MIB, 187);
        // The reading is older than the second client.
        let mut before = self::room(0, 0, 500);
        before.note_joined(250 * MIB);
        assert_eq!(before.share(250 * MIB, 0), 250 * MIB);
    }

    #[test]
    fn the_machine_as_the_source_is_no_hard_limit() {
        let config = PressureConfig::default();
        assert_eq!(MemoryRoom::of(&sample(760, Source::System), &config, Totals::default()), None);
        assert_eq!(MemoryRoom::of(&sample(760, Source::Process), &config, Totals::default()), None);
        let limited = config.memory_limit(1000 * MIB);
        assert!(MemoryRoom::of(&sample(760, Source::Process), &limited, Totals::default()).is_some());
        let full = MemoryRoom::of(&sample(990, Source::CgroupV1), &limited, Totals::default()).unwrap();
        assert_eq!(full.share(MIB, 5 * MIB), 0);
    }
}
