//! Data sets → packed token sequences.
//!
//! [`resolve`] turns a path into data files, [`pack`] turns data files into sequences of exactly
//! `context_size` tokens: some to harvest activations for training from, and some held out. Both read files
//! and nothing else; the tokenizer comes in as [`Encode`]. Read [`pack`] first.
//!
//! What a document is: a row of a `.parquet` or `.csv` file, a line of a `.jsonl` file, a whole `.txt` file.
//! A `.txt` file may hold several documents with `<|endoftext|>` between them.

mod documents;
mod error;
mod files;
mod lines;
mod pack;
mod packing;
mod tables;

pub use error::{At, DataError, Place};
pub use files::resolve;
pub use pack::{Encode, Packed, pack};
