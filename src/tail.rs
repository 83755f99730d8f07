//! STAGE 1: one thread per followed path; files in, chunks out.
