//! Proxies that answer in every way.
