//! Tests that run the committer step by step, without a thread. So every interleaving with its
//! callers can be produced and repeated.

mod orders;
mod plan;
mod rig;
