use crate::Level;

/// A client that can free memory: a cache, or anything else that keeps more than it needs.
///
/// [`register`](crate::PressureMonitor::register) it with a monitor. The monitor's thread makes all
/// calls, one after the other: while one runs, no other client is served and memory is not checked.
/// So each call returns within about a second, and only [`relieve`](Self::relieve) takes long. A
/// call that panics ends the monitor: see [`has_died`](crate::Registration::has_died).
///
/// A client with a budget also returns [`budget_bytes`](Self::budget_bytes) and
/// [`accounted_bytes`](Self::accounted_bytes), and stays below
/// [`Registration::share`](crate::Registration::share), so that memory does not become short in
/// the first place.
pub trait Relief: Send + Sync {
    /// Frees about `excess_bytes`, or everything it can at [`Level::Critical`]. Returns the bytes
    /// by which the accounted memory fell (negative if it grew). If that is next to nothing, the
    /// monitor asks less and less often.
    fn relieve(&self, level: Level, excess_bytes: u64) -> isize;

    /// The bytes that could be freed. An excess is divided among the clients by this.
    fn reclaimable_bytes(&self) -> u64;

    /// The memory that counts against the budget, in bytes. Must not block.
    ///
    /// Default = 0: the memory counts as that of others, which no client's share includes.
    fn accounted_bytes(&self) -> u64 {
        0
    }

    /// The budget, in bytes. Clients divide the memory below a hard limit by this. Must not block;
    /// also called by `register`.
    ///
    /// Default = 0: the client has no share.
    fn budget_bytes(&self) -> u64 {
        0
    }

    /// Called when the level changed, before the first `relieve` at that level.
    ///
    /// Default = nothing.
    fn level_changed(&self, _level: Level) {}

    /// Called when there is room after pressure: grows by a small step towards the full size.
    /// Returns true if more is left. Then it is called again, after a pause.
    ///
    /// Default = false, for a client that fills again by itself.
    fn memory_returned(&self) -> bool {
        false
    }
}
