#!lua flags=allow-oom
-- Forget what was counted of a group in the generations of its stream that are gone: it is being removed.
--
-- KEYS[1] ns:stream:<name>  hash, of which done:<kind>:<group>
-- ARGV[1] group
-- returns nil
-- cost    O(fields)
-- include: uncount
uncount(KEYS[1], 'done:', ARGV[1])
