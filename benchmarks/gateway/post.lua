-- One chat request, as wrk sends it over and over, each with another number in its text.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
local body = file:read("*a")
file:close()
local at, last = string.find(body, "@@@@@@@@", 1, true)
local before, after = string.sub(body, 1, at - 1), string.sub(body, last + 1)
local headers = {
  ["Content-Type"] = "application/json",
  ["Authorization"] = "Bearer " .. os.getenv("BENCH_KEY"),
  ["Host"] = "127.0.0.1",
}
local number = math.floor((tonumber(os.getenv("BENCH_FROM") or "0")) % 100000000)
request = function()
  number = (number + 1) % 100000000
  return wrk.format("POST", nil, headers, before .. string.format("%08d", number) .. after)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("RESULT %d %d\n", summary.requests, failed))
end
