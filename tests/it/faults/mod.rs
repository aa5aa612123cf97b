mod checkpoint; // a checkpoint fails or does not end
mod doubt; // callers give up while their stores are at the disk
mod full; // no free space
mod hanging; // the disk hangs, or fails until the shutdown
mod journal; // writes of the journal fail
mod opening; // openings fail and are retried
mod reading; // reads fail
mod shutdown; // shutdowns on a hanging disk
