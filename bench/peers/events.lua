-- What wrk sends to measure a spool: records as sites send them, of 300 bytes
-- each, for as many tables, in turns. Each record has its own ids, times and
-- texts: how well a batch can be compressed depends on them.
-- Arguments: the number of tables, and the size of a record.
dofile("report.lua")

local words = {
	"summer", "winter", "jacket", "cotton", "leather", "shoes", "running", "blue", "green", "black", "white", "red",
	"slim", "loose", "classic", "modern", "light", "heavy", "water", "proof", "wool", "linen", "shirt", "dress",
	"skirt", "trousers", "belt", "bag", "travel", "office", "garden", "kitchen", "table", "chair", "lamp", "carpet",
	"window", "curtain", "glass", "bottle", "coffee", "tea", "bread", "knife", "spoon", "plate", "music", "guitar",
	"piano", "book", "novel", "paper", "pencil", "camera", "phone", "cable", "battery", "screen", "keyboard", "mouse",
	"city", "river", "mountain", "forest", "island", "beach", "bicycle", "helmet", "tent", "rope", "boat", "engine",
}
local events = { "page_view", "product_view", "add_to_cart", "search", "checkout", "purchase" }
local sites = { "https://www.google.com/", "https://news.example/", "https://mail.example/inbox", "", "https://social.example/p/" }

local function one_of(list) return list[math.random(#list)] end

local function hex(digits)
	local parts = {}
	for i = 1, digits do parts[i] = string.format("%x", math.random(0, 15)) end
	return table.concat(parts)
end

local function some(count, between)
	local parts = {}
	for i = 1, count do parts[i] = one_of(words) end
	return table.concat(parts, between)
end

local function record(size, milliseconds)
	local text = string.format(
		'{"event":"%s","client":"%s-%s-4%s-a%s-%s","user":%d,"at":%d,"url":"https://shop.example/%s/%s-%05d","price":%d.%02d,"from":"%s","title":"',
		one_of(events), hex(8), hex(4), hex(3), hex(3), hex(12), math.random(1000000, 9999999), milliseconds,
		one_of(words), some(2, "-"), math.random(0, 99999), math.random(1, 300), math.random(0, 99), one_of(sites))
	while #text < size - 2 do text = text .. one_of(words) .. " " end
	return string.sub(text, 1, size - 2) .. '"}'
end

local threads = 0
function setup(thread)
	thread:set("seed", threads)
	threads = threads + 1
end

function init(args)
	local tables, size = tonumber(args[1]), tonumber(args[2])
	math.randomseed(seed + 1)
	wrk.method = "POST"
	wrk.headers["Content-Type"] = "application/json"
	local path, query = string.match(wrk.path, "^([^?]*)(.*)$")
	local now, requests, at = 1790000000000, {}, 0
	for i = 1, 600 * tables do -- more than one batch of each table
		now = now + math.random(0, 40)
		requests[i] = wrk.format(nil, path .. string.format("%02d", i % tables) .. query, nil, record(size, now))
	end
	function request()
		at = at % #requests + 1
		return requests[at]
	end
end
