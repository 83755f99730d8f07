//! STAGE 3: acks in, saved positions out.
