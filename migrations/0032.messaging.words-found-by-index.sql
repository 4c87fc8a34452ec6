-- Owned by the messaging service. The list of pending words, in kB, is short, as that of idx_messages_salon_period_search
-- is: with a long one, the planner read all words instead, 300 ms for 20,000.
ALTER INDEX message_words_similar SET (gin_pending_list_limit = 64);
