use super::Level;

/// A spool that can free memory. The monitor's thread calls it and does nothing else meanwhile.
#[cfg_attr(not(feature = "pressure-monitor"), expect(dead_code, reason = "only a monitor calls it"))]
pub(crate) trait Relief: Send + Sync {
    /// Frees about `excess_bytes`, or everything it can at [`Level::Critical`]. Returns the bytes
    /// by which the accounted memory fell (negative if it grew), within about a second.
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize;

    /// The bytes that could be freed. An excess is divided among the spools by this.
    fn reclaimable_bytes(&self) -> u64;

    /// The memory that counts against the budget, and the budget, in bytes. Must not block.
    fn accounted_of(&self) -> (u64, u64);

    /// Called when the level changed, before the first `relieve` at that level.
    fn level_changed(&self, level: Level);

    /// Called when there is room after pressure: grows by a small step towards the full size.
    /// Returns true if more is left. Then it is called again, after a pause.
    fn memory_returned(&self) -> bool;
}
