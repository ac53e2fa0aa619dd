# Plain C++: the reference that every other set is held to, and what runs where no other does.
target_sources(gristmill_objects PRIVATE csrc/cpu/isa/scalar/kernels.cpp)
