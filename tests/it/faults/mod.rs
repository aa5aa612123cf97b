mod checkpoint; // a checkpoint fails, or does not end
mod doubt; // callers give up while the disk has their stores
mod full; // no room
mod hanging; // nothing answers, or all fails until the spool is shut down
mod journal; // writing the journal fails
mod opening; // opening fails, and is tried again
mod reading; // reading fails
mod shutdown; // what a shutdown does on a disk that hangs
