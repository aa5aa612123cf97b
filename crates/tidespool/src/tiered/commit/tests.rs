//! The committer driven step by step, without a thread: so each interleaving with its callers can
//! be made, and repeats.

mod orders;
mod rig;
